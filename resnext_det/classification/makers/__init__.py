"""Bring published archives into the layouts that pretraining reads; tools/make_*.py are their command lines."""
