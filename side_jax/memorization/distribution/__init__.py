"""How the generated images are distributed, compared with members and held-out images."""
