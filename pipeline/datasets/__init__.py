"""Raw layouts to rows of the frame index."""
