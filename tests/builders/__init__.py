"""What several tests build: images, tiny models, datasets, articles, and servers that imitate real ones."""
