/* Host functions, called by the interpreter's own means.
 *
 * A function of Python's that cffi makes callable from C is run by a dispatcher, with its arguments boxed as C objects;
 * that took two thirds of the way from a guest to Python and back. Here a host function is called as any C extension
 * would: values of the cells become integers, floats and bytes, and the result goes back the same way.
 *
 * What Python calls through cffi gives the interpreter's lock away, so everything in here takes it.
 */
#include "python_values.h"

#include <string.h>

#include "sandhost.h"

/* All pointers are borrowed from `held`, a tuple of hostcalls.py that the plugin holds until it unbinds. */
typedef struct {
  PyObject *held; /* NULL: not bound */
  PyObject *function;
  PyObject *misfit;   /* (result, exception) -> the exception to raise instead */
  PyObject *guest_of; /* guest id -> the object that calls */
  const char *params, *results;
  Py_ssize_t guest_at; /* which argument is the guest; -1: none */
  Py_ssize_t arguments, result_count;
  bool asynchronous; /* what it returns is awaited */
  /* Of a function that takes or returns handles; else the first is NULL. */
  const char *param_kinds, *result_kinds; /* by position; 0: no handle */
  sh_heap *heap;
  PyObject *objects; /* the heap's list of what its cells stand for */
  PyObject *wrap;    /* (guest id, object, kind) -> handle */
  PyObject *refusal; /* () -> the exception for what this thread's last use of a handle met */
} binding;

/* Under the interpreter's lock, as all of this. */
static binding *bindings;
static uint32_t room;
static PyObject *pending, *awaited; /* of hostcalls.py */

void sh_python_keep(void *pending_by_guest, void *awaited_by_guest) {
  PyGILState_STATE gil = PyGILState_Ensure();
  pending = pending_by_guest;
  awaited = awaited_by_guest;
  Py_INCREF(pending);
  Py_INCREF(awaited);
  PyGILState_Release(gil);
}

static bool make_room(uint32_t number) {
  if (number < room) return true;
  uint32_t wanted = number < 64 ? 64 : 2 * number;
  binding *grown = PyMem_Realloc(bindings, wanted * sizeof *grown);
  if (!grown) return false;
  memset(grown + room, 0, (wanted - room) * sizeof *grown);
  bindings = grown;
  room = wanted;
  return true;
}

int sh_python_bind(uint32_t number, void *tuple) {
  PyGILState_STATE gil = PyGILState_Ensure();
  bool fits = make_room(number);
  if (fits) {
    binding *made = &bindings[number];
    made->function = PyTuple_GetItem(tuple, 0);
    made->misfit = PyTuple_GetItem(tuple, 1);
    made->guest_of = PyTuple_GetItem(tuple, 2);
    made->guest_at = PyLong_AsSsize_t(PyTuple_GetItem(tuple, 3));
    made->params = PyBytes_AsString(PyTuple_GetItem(tuple, 4));
    made->results = PyBytes_AsString(PyTuple_GetItem(tuple, 5));
    made->asynchronous = PyObject_IsTrue(PyTuple_GetItem(tuple, 6)) == 1;
    made->arguments = (Py_ssize_t)strlen(made->params) + (made->guest_at >= 0);
    made->result_count = (Py_ssize_t)strlen(made->results);
    bool handles = PyTuple_Size(tuple) > 7;
    made->param_kinds = handles ? PyBytes_AsString(PyTuple_GetItem(tuple, 7)) : NULL;
    if (handles) {
      made->result_kinds = PyBytes_AsString(PyTuple_GetItem(tuple, 8));
      made->heap = PyLong_AsVoidPtr(PyTuple_GetItem(tuple, 9));
      made->objects = PyTuple_GetItem(tuple, 10);
      made->wrap = PyTuple_GetItem(tuple, 11);
      made->refusal = PyTuple_GetItem(tuple, 12);
    }
    made->held = tuple;
  }
  PyGILState_Release(gil);
  return fits ? SH_OK : SH_NATIVE;
}

void sh_python_unbind(uint32_t number) {
  PyGILState_STATE gil = PyGILState_Ensure();
  if (number < room) bindings[number].held = NULL;
  PyGILState_Release(gil);
}

/* ---- values -------------------------------------------------------------------------------------------------------- */

/* Between the check and the list nobody else runs: places are given away again by Python only. */
static PyObject *from_handle(const binding *bound, uint64_t guest, char kind, const int64_t *cell) {
  int64_t place = sh_handle_object(bound->heap, guest, (uint64_t)*cell, (uint32_t)kind);
  if (place >= 0) {
    PyObject *object = PyList_GetItem(bound->objects, (Py_ssize_t)place);
    Py_XINCREF(object);
    return object;
  }
  PyObject *error = PyObject_CallObject(bound->refusal, NULL);
  if (error) PyErr_SetObject((PyObject *)Py_TYPE(error), error);
  Py_XDECREF(error);
  return NULL;
}

static bool result_fits(char type, int64_t number) {
  if (type != 'i' || (number >= INT32_MIN && number <= (int64_t)UINT32_MAX)) return true;
  PyErr_SetString(PyExc_OverflowError, "it does not fit an i32");
  return false;
}

static bool handle_to_cell(const binding *bound, uint64_t guest, char kind, PyObject *value, int64_t *cell) {
  PyObject *id = PyLong_FromUnsignedLongLong(guest), *number = PyLong_FromLong(kind);
  PyObject *handle = id && number ? PyObject_CallFunctionObjArgs(bound->wrap, id, value, number, NULL) : NULL;
  bool made = handle && shi_python_to_cell('l', handle, cell);
  Py_XDECREF(handle);
  Py_XDECREF(number);
  Py_XDECREF(id);
  return made;
}

static bool result_to_cell(const binding *bound, uint64_t guest, Py_ssize_t k, PyObject *value, int64_t *cells) {
  char kind = bound->param_kinds ? bound->result_kinds[k] : 0;
  char type = bound->results[k];
  int64_t *cell = cells + 2 * k;
  return kind ? handle_to_cell(bound, guest, kind, value, cell)
              : shi_python_to_cell(type, value, cell) && result_fits(type, *cell);
}

static bool to_cells(const binding *bound, uint64_t guest, PyObject *result, int64_t *cells) {
  if (bound->result_count == 0) return true;
  if (bound->result_count == 1) return result_to_cell(bound, guest, 0, result, cells);
  PyObject *values = PySequence_Tuple(result);
  if (!values) return false;
  bool fit = PyTuple_Size(values) == bound->result_count;
  if (!fit) PyErr_Format(PyExc_ValueError, "%zd values are expected", bound->result_count);
  for (Py_ssize_t k = 0; k < bound->result_count && fit; k++)
    fit = result_to_cell(bound, guest, k, PyTuple_GetItem(values, k), cells);
  Py_DECREF(values);
  return fit;
}

/* ---- the call ------------------------------------------------------------------------------------------------------ */

static PyObject *take_exception(void) {
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  if (traceback) PyException_SetTraceback(value, traceback);
  Py_XDECREF(traceback);
  Py_XDECREF(type);
  return value;
}

/* What is not of the right type or range is told by name; whatever else the conversion raised goes on. */
static void explain(const binding *bound, PyObject *result) {
  if (!PyErr_ExceptionMatches(PyExc_TypeError) && !PyErr_ExceptionMatches(PyExc_ValueError) &&
      !PyErr_ExceptionMatches(PyExc_OverflowError))
    return;
  PyObject *cause = take_exception();
  PyObject *error = PyObject_CallFunctionObjArgs(bound->misfit, result, cause, NULL);
  Py_DECREF(cause);
  if (error) PyErr_SetObject((PyObject *)Py_TYPE(error), error);
  Py_XDECREF(error);
}

static PyObject *arguments_of(const binding *bound, uint64_t guest, PyObject *guest_id, const int64_t *cells) {
  PyObject *arguments = PyTuple_New(bound->arguments);
  const char *type = bound->params, *kind = bound->param_kinds;
  for (Py_ssize_t k = 0; arguments && k < bound->arguments; k++) {
    PyObject *value;
    if (k == bound->guest_at) {
      value = PyObject_CallFunctionObjArgs(bound->guest_of, guest_id, NULL);
    } else {
      value = kind && *kind ? from_handle(bound, guest, *kind, cells) : shi_python_from_cell(*type, cells);
      if (kind) kind++;
      type++;
      cells += 2;
    }
    if (!value) Py_CLEAR(arguments);
    if (value) PyTuple_SetItem(arguments, k, value);
  }
  return arguments;
}

static bool keep(PyObject *by_guest, uint64_t guest, PyObject *thing) {
  PyObject *id = PyLong_FromUnsignedLongLong(guest);
  bool kept = id && PyDict_SetItem(by_guest, id, thing) == 0;
  Py_XDECREF(id);
  return kept;
}

static bool finish(const binding *bound, uint64_t guest, PyObject *result, int64_t *cells) {
  bool fits = to_cells(bound, guest, result, cells);
  if (!fits) explain(bound, result);
  return fits;
}

static bool run(const binding *bound, uint64_t guest, int64_t *cells) {
  PyObject *guest_id = NULL;
  if (bound->guest_at >= 0 && !(guest_id = PyLong_FromUnsignedLongLong(guest))) return false;
  PyObject *arguments = arguments_of(bound, guest, guest_id, cells);
  Py_XDECREF(guest_id);
  if (!arguments) return false;
  PyObject *result = PyObject_CallObject(bound->function, arguments);
  Py_DECREF(arguments);
  if (!result) return false;
  bool done = bound->asynchronous ? keep(awaited, guest, result) : finish(bound, guest, result, cells);
  Py_DECREF(result);
  return done;
}

/* Guest.call raises it. Nothing here runs Python code that a signal could interrupt. */
static void keep_exception(uint64_t guest) {
  PyObject *error = take_exception();
  if (!keep(pending, guest, error)) PyErr_Clear(); /* out of memory: the call fails without its reason */
  Py_XDECREF(error);
}

/* The binding of that number, held; or an exception. */
static bool hold(uint32_t number, binding *out) {
  if (number >= room || !bindings[number].held) {
    PyErr_SetString(PyExc_SystemError, "a guest outlived its plugin");
    return false;
  }
  *out = bindings[number]; /* the table may move meanwhile */
  Py_INCREF(out->held);
  return true;
}

int sh_python_hostcall(uint64_t guest, uint32_t number, int64_t *cells) {
  PyGILState_STATE gil = PyGILState_Ensure();
  binding bound;
  int said = SH_RAISED;
  if (hold(number, &bound)) {
    if (run(&bound, guest, cells)) said = bound.asynchronous ? SH_SAID_LATER : SH_SAID;
    Py_DECREF(bound.held);
  }
  if (said == SH_RAISED) keep_exception(guest);
  PyGILState_Release(gil);
  return said;
}

/* ---- answers that come later ---------------------------------------------------------------------------------------- */

int sh_python_answer(uint64_t guest, uint32_t number, void *answer, int64_t *cells) {
  PyGILState_STATE gil = PyGILState_Ensure();
  binding bound;
  bool done = false;
  if (hold(number, &bound)) {
    done = finish(&bound, guest, answer, cells);
    Py_DECREF(bound.held);
  }
  if (!done) keep_exception(guest);
  PyGILState_Release(gil);
  return done ? SH_SAID : SH_RAISED;
}

int sh_python_take(uint64_t guest, void *answer, uint8_t *to, uint64_t *length) {
  PyGILState_STATE gil = PyGILState_Ensure();
  char *bytes;
  Py_ssize_t count;
  bool done = PyBytes_AsStringAndSize(answer, &bytes, &count) == 0;
  if (done && (uint64_t)count > *length) {
    PyErr_SetString(PyExc_ValueError, "more input than was asked for");
    done = false;
  }
  if (done) memcpy(to, bytes, (size_t)count);
  if (done) *length = (uint64_t)count;
  if (!done) keep_exception(guest);
  PyGILState_Release(gil);
  return done ? SH_SAID : SH_RAISED;
}
