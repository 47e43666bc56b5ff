"""What is put into the picture: virtual faces, blended in, and mosaics; safe frames are sealed here."""
