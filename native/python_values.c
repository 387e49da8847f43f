#include "python_values.h"

#include <string.h>

PyObject *shi_python_from_cell(char type, const int64_t *cell) {
  double real;
  switch (type) {
  case 'i':
  case 'l':
    return PyLong_FromLongLong(*cell);
  case 'v':
    return PyBytes_FromStringAndSize((const char *)cell, 16);
  default:
    memcpy(&real, cell, sizeof real);
    return PyFloat_FromDouble(real);
  }
}

static bool integer_to_cell(char type, PyObject *value, int64_t *cell) {
  int overflow;
  long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
  if (number == -1 && !overflow && PyErr_Occurred()) return false;
  if (type == 'l' && overflow > 0) { /* unsigned, perhaps; of what is no int, as numpy's, only the index is one */
    PyObject *index = PyNumber_Index(value);
    if (!index) return false;
    unsigned long long bits = PyLong_AsUnsignedLongLong(index);
    Py_DECREF(index);
    if (bits == (unsigned long long)-1 && PyErr_Occurred()) return false;
    number = (long long)bits;
  } else if (overflow) {
    PyErr_SetString(PyExc_OverflowError, type == 'i' ? "it does not fit an i32" : "it does not fit an i64");
    return false;
  }
  *cell = number;
  return true;
}

static bool vector_to_cell(PyObject *value, int64_t *cell) {
  PyObject *view = PyMemoryView_FromObject(value); /* not everything that makes bytes is 16 of them */
  PyObject *bytes = view ? PyBytes_FromObject(view) : NULL;
  Py_XDECREF(view);
  if (!bytes) return false;
  bool fits = PyBytes_Size(bytes) == 16;
  if (fits)
    memcpy(cell, PyBytes_AsString(bytes), 16);
  else
    PyErr_SetString(PyExc_ValueError, "a v128 has 16 bytes");
  Py_DECREF(bytes);
  return fits;
}

bool shi_python_to_cell(char type, PyObject *value, int64_t *cell) {
  if (type == 'i' || type == 'l') return integer_to_cell(type, value, cell);
  if (type == 'v') return vector_to_cell(value, cell);
  double real = PyFloat_AsDouble(value);
  if (real == -1 && PyErr_Occurred()) return false;
  memcpy(cell, &real, sizeof real);
  return true;
}
