"""Hands sandhost.h to cffi: the header is the single declaration of the interface between C and Python."""

from pathlib import Path

import cffi

header = Path(__file__).with_name("sandhost.h").read_text()
declarations = header.split("/* cffi: begin */", 1)[1].split("/* cffi: end */", 1)[0]

ffibuilder = cffi.FFI()
ffibuilder.cdef(declarations)
ffibuilder.cdef(
    """
    extern "Python" {
      int _output(uint64_t guest, int stream, const uint8_t *bytes, size_t length, int may_wait);
      int _input(uint64_t guest, uint64_t length);
      int _signals(void);
      void _triggered(sh_heap *heap);
    }
    """
)
ffibuilder.set_source("sandhost._native", '#include "sandhost.h"\n', py_limited_api=True)
