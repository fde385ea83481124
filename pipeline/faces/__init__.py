"""From images to faces, crops and features; reads no file but weights."""
