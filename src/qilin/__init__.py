"""Qilin: Chinese medical vision-language models, from images and text to a measured, answering model."""

__version__ = "0.1.0"
