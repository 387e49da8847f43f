"""Migrations of the registry's database: how it got to be what schema.py says.

Each is one file in versions/, made by hand, and is never changed once released. A start runs those that are
missing, all in one transaction.
"""
