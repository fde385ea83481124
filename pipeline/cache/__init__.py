"""The feature cache: frozen FAN features of every view of every face, in a store with one group per view."""
