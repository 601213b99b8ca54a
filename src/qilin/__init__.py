"""Qilin: Chinese medical vision-language models, from pictures and text to a measured, answering model."""

__version__ = "0.1.0"
