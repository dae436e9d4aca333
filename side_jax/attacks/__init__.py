"""What an attack is: its guide, and the labels and images that the guide learns from."""
