"""Ids of the Hugging Face hub: what they name, which commit that is, and its files on this machine."""
