"""Files of video, sound and photos: reading, writing, colour."""
