/* Values of wasm as Python's objects, and back: what host functions and calls of guests share. Under Python's lock. */
#ifndef SANDHOST_PYTHON_VALUES_H
#define SANDHOST_PYTHON_VALUES_H

#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

/* Types are letters as in sh_plugin_export, cells as in signature.c. */
PyObject *shi_python_from_cell(char type, const int64_t *cell); /* NULL: an exception */
/* False: an exception. Whether the number of an i32 is one is the caller's to check. */
bool shi_python_to_cell(char type, PyObject *value, int64_t *cell);

#endif
