"""Images to learn from: found in folders, decoded, numbered by class."""
