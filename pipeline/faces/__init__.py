"""Images in, faces, crops and features out; no disk but the weights."""
