"""Modules: reading, describing and rewriting WebAssembly binaries, and keeping compiled ones.

leb ─ binary ─ constant ─┐
          types ─────────┴─ parse ─ describe ─ rewrite ─ fingerprint   what compiled code is named by
                                               private ─ cache         the files of compiled code
"""
