/* The page pool's four short ways as Python functions, past cffi.
 *
 * cffi gives the interpreter's lock away for each call. A request that takes a buffer, looks into it and puts it back
 * makes four of them, 0.1 us each, and on two threads each was a chance to lose the lock: 20 us a request where a
 * processor was free for each thread, 3 with the lock kept.
 */
#include <Python.h>

#include "page_pool.h"

/* Whoever writes over more lets others run meanwhile: it takes longer than to get the lock back. */
enum { LONG_BYTES = 128 << 10 };

static sh_pages *pages_of(PyObject *self) { return PyLong_AsVoidPtr(self); }

static uint64_t lease_of(PyObject *number) { return PyLong_AsUnsignedLongLong(number); }

static PyObject *take(PyObject *self, PyObject *unused) {
  (void)unused;
  return PyLong_FromUnsignedLongLong(shi_pages_take(pages_of(self)));
}

static PyObject *put(PyObject *self, PyObject *number) {
  sh_pages *pages = pages_of(self);
  uint64_t lease = lease_of(number);
  if (PyErr_Occurred()) return NULL;
  if (shi_pages_extent(pages, lease) < LONG_BYTES) return PyLong_FromLong(shi_pages_put(pages, lease));
  int status;
  Py_BEGIN_ALLOW_THREADS;
  status = shi_pages_put(pages, lease);
  Py_END_ALLOW_THREADS;
  return PyLong_FromLong(status);
}

static PyObject *pin(PyObject *self, PyObject *arguments) {
  unsigned long long lease, end;
  if (!PyArg_ParseTuple(arguments, "KK", &lease, &end)) return NULL;
  return PyBool_FromLong(shi_pages_pin(pages_of(self), lease, end) != NULL);
}

static PyObject *unpin(PyObject *self, PyObject *number) {
  uint64_t lease = lease_of(number);
  if (PyErr_Occurred()) return NULL;
  shi_pages_unpin(pages_of(self), lease);
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"take", take, METH_NOARGS, NULL},
    {"put", put, METH_O, NULL},
    {"pin", pin, METH_VARARGS, NULL},
    {"unpin", unpin, METH_O, NULL},
};

int sh_python_pages(sh_pages *pages, void *dict) {
  PyGILState_STATE gil = PyGILState_Ensure();
  PyObject *self = PyLong_FromVoidPtr(pages);
  bool done = self != NULL;
  for (size_t k = 0; done && k < sizeof methods / sizeof *methods; k++) {
    PyObject *function = PyCFunction_NewEx(&methods[k], self, NULL);
    done = function && PyDict_SetItemString(dict, methods[k].ml_name, function) == 0;
    Py_XDECREF(function);
  }
  Py_XDECREF(self);
  if (!done) PyErr_Clear();
  PyGILState_Release(gil);
  return done ? SH_OK : shi_fail_no_memory();
}
