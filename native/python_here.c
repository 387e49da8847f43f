/* Calls of guests that live for one call, on an event loop, as Python functions: past cffi, so that Python's lock is kept.
 *
 *   here(arguments, origin, tenant, limits) ─► cells ─► shi_live_here (here.c) ─► cells ─► results
 *
 * Origin, tenant and limits are addresses, whose owners the caller holds. An exception that is TypeError, ValueError or
 * OverflowError comes before there is a guest: it is about the arguments, and says less of them than lives.py knows.
 */
#include "python_values.h"

#include <stdlib.h>

#include "fiber.h"

/* Of what a function is told once: its `self`. */
enum { PLUGIN, INDEX, ENDED, LONG };
/* Of what it is given with each call. */
enum { ARGUMENTS, ORIGIN, TENANT, LIMITS, GIVEN };
enum { FEW = 8 };

static bool put(const shi_export *export, PyObject *arguments, wasmtime_val_raw_t *cells) {
  if (PyTuple_Size(arguments) != (Py_ssize_t)export->param_count) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "the function takes another number of arguments");
    return false;
  }
  for (uint32_t k = 0; k < export->param_count; k++)
    if (!shi_python_to_cell(export->params[k], PyTuple_GetItem(arguments, k), &cells[k].i64)) return false;
  return true;
}

static PyObject *take(const shi_export *export, const wasmtime_val_raw_t *cells) {
  if (export->result_count == 0) Py_RETURN_NONE;
  if (export->result_count == 1) return shi_python_from_cell(export->results[0], &cells->i64);
  PyObject *results = PyTuple_New(export->result_count);
  for (uint32_t k = 0; results && k < export->result_count; k++) {
    PyObject *value = shi_python_from_cell(export->results[k], &cells[k].i64);
    if (value) PyTuple_SetItem(results, k, value);
    if (!value) Py_CLEAR(results);
  }
  return results;
}

static PyObject *live(PyObject *self, PyObject *const *given, wasmtime_val_raw_t *cells) {
  sh_plugin *plugin = PyLong_AsVoidPtr(PyTuple_GetItem(self, PLUGIN));
  uint32_t index = (uint32_t)PyLong_AsUnsignedLong(PyTuple_GetItem(self, INDEX));
  sh_snapshot *origin = PyLong_AsVoidPtr(given[ORIGIN]);
  sh_tenant *tenant = PyLong_AsVoidPtr(given[TENANT]);
  const sh_limits *limits = PyLong_AsVoidPtr(given[LIMITS]);
  if (PyErr_Occurred() || !put(&plugin->exports[index], given[ARGUMENTS], cells)) return NULL;
  int status = shi_live_here(plugin, origin, tenant, limits, index, cells);
  if (__builtin_expect(status == SH_OK, 1)) return take(&plugin->exports[index], cells);
  if (status == SH_CANCELLED) {
    Py_BEGIN_ALLOW_THREADS;
    shi_stay_if_exiting();
    Py_END_ALLOW_THREADS;
  }
  if (status != SH_LONG) return PyObject_CallObject(PyTuple_GetItem(self, ENDED), NULL);
  PyObject *is_long = PyTuple_GetItem(self, LONG);
  Py_INCREF(is_long);
  return is_long;
}

static PyObject *here(PyObject *self, PyObject *const *given, Py_ssize_t count) {
  if (count != GIVEN) return PyErr_Format(PyExc_SystemError, "%d values are expected", GIVEN);
  const sh_plugin *plugin = PyLong_AsVoidPtr(PyTuple_GetItem(self, PLUGIN));
  const shi_export *export = &plugin->exports[PyLong_AsUnsignedLong(PyTuple_GetItem(self, INDEX))];
  uint32_t width = export->param_count > export->result_count ? export->param_count : export->result_count;
  wasmtime_val_raw_t few[FEW], *cells = width <= FEW ? few : malloc(width * sizeof *cells);
  if (!cells) return PyErr_NoMemory();
  PyObject *result = live(self, given, cells);
  if (cells != few) free(cells);
  return result;
}

static PyMethodDef method = {"here", (PyCFunction)(void (*)(void))here, METH_FASTCALL, NULL};

int sh_python_here(sh_plugin *plugin, uint32_t index, void *ended, void *is_long, void *dict) {
  if (index >= plugin->export_count || plugin->exports[index].references)
    return shi_fail(SH_ARGUMENT, "no such function, or references cannot cross");
  PyGILState_STATE gil = PyGILState_Ensure();
  PyObject *self = Py_BuildValue("(NkOO)", PyLong_FromVoidPtr(plugin), (unsigned long)index, ended, is_long);
  PyObject *function = self ? PyCFunction_NewEx(&method, self, NULL) : NULL;
  bool done = function && PyDict_SetItemString(dict, method.ml_name, function) == 0;
  Py_XDECREF(function);
  Py_XDECREF(self);
  if (!done) PyErr_Clear();
  PyGILState_Release(gil);
  return done ? SH_OK : shi_fail_no_memory();
}
