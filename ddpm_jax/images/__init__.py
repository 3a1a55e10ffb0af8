"""Images: read from folders and arrays, and written as sets."""
