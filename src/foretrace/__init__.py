"""Foretrace."""
