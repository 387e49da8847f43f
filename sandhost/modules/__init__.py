"""Modules: reading, describing and rewriting WebAssembly binaries, and keeping compiled ones.

leb ─ binary ─ constant ─┐
          types ─────────┴─ parse ─ describe ─ rewrite
cache     files of compiled code, named by what they were compiled from
"""
