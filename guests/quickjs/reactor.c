/* quickjs: JavaScript: QuickJS in one context that lives as long as the guest.
 *
 * A reactor. The host calls _initialize once, which makes the context; then it writes source into a buffer that alloc()
 * gave, calls run(), and reads value() and value_length(). What is called again and again sees what earlier runs left.
 *
 * The engine is one C file, and so it is included here: Math.random's state and a promise's result have no functions of
 * their own in its interface.
 *
 * What a run writes to decides how fast a copy-on-write fork of this guest is: nothing is collected before a megabyte
 * was allocated, since the collector writes into every object, and the output goes out without stdio's buffers.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fenv.h>
#include <malloc.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* JavaScript rounds ties away from zero and C's printf rounds them to even. The engine corrects that with rounding
 * modes, which WebAssembly has not; printf that rounds as JavaScript does leaves it nothing to correct. */
#define FE_DOWNWARD 0
#define FE_UPWARD 0
#define snprintf rounding_snprintf
static int rounding_snprintf(char *buffer, size_t size, const char *format, ...);

#include "quickjs.c"

#undef snprintf
#undef malloc
#undef free
#undef realloc

#define EXPORT(name) __attribute__((export_name(name)))

enum { UNCOLLECTED_BYTES = 1 << 20 };

/* How much of this guest's own stack, 640 KiB, scripts may use. WebAssembly keeps return addresses and most variables on
 * another, which the guest cannot look at; the host says how large that is, and wasmtime's default is 512 KiB. Measured:
 * a chain of JavaScript calls, however it is made, uses 512 KiB of that one up after 184 KiB of ours or later, and the
 * parser after 57 or later. What passes unchecked (eval, JSON and flat() of something nested ten thousand deep) and
 * reaches the end of either is a trap. */
static size_t run_stack_bytes, parse_stack_bytes;

static JSRuntime *runtime;
static JSContext *context;
static JSValue stringify, to_string; /* JSON.stringify and String, whatever the scripts do to their names */

static const char *value_text; /* of the last run; NULL: none. From JS_ToCStringLen */
static size_t value_bytes;

/* ---- numbers ------------------------------------------------------------------------------------------------------- */

/* Whether |number| lies exactly in the middle of two decimals with `digits` digits behind the point (which may be
 * negative: zeros before it). With digits >= 0 the middle is odd / 2^(digits + 1), as 5^digits is odd. */
static int is_tie(double number, int digits) {
  if (!isfinite(number) || number == 0) return 0;
  if (digits >= 0) {
    double scaled = ldexp(fabs(number), digits + 1);
    return scaled < 0x1p53 && floor(scaled) == scaled && fmod(scaled, 2) == 1;
  }
  if (digits < -22 || floor(number) != number) return 0; /* 10^22 is the last power of ten that a double holds */
  double unit = pow(10, -digits);
  return fmod(fabs(number), unit) == unit / 2;
}

/* snprintf for the engine's formats, except that "%.*f" and "%+.*e" round ties away from zero. */
static int rounding_snprintf(char *buffer, size_t size, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int fixed = strcmp(format, "%.*f") == 0, length;
  if (fixed || strcmp(format, "%+.*e") == 0) {
    int digits = va_arg(arguments, int);
    double number = va_arg(arguments, double);
    int behind = fixed || number == 0 || !isfinite(number) ? digits : digits - (int)floor(log10(fabs(number)));
    if (is_tie(number, behind)) number = nextafter(number, number < 0 ? -INFINITY : INFINITY);
    length = snprintf(buffer, size, format, digits, number);
  } else {
    length = vsnprintf(buffer, size, format, arguments);
  }
  va_end(arguments);
  return length;
}

/* ---- memory: malloc, counted, so that the engine knows when to collect ---------------------------------------------- */

static void *counted_malloc(JSMallocState *state, size_t bytes) {
  if (state->malloc_size + bytes > state->malloc_limit) return NULL;
  void *pointer = malloc(bytes);
  if (pointer == NULL) return NULL;
  state->malloc_count++;
  state->malloc_size += malloc_usable_size(pointer);
  return pointer;
}

static void counted_free(JSMallocState *state, void *pointer) {
  if (pointer == NULL) return;
  state->malloc_count--;
  state->malloc_size -= malloc_usable_size(pointer);
  free(pointer);
}

static void *counted_realloc(JSMallocState *state, void *pointer, size_t bytes) {
  if (pointer == NULL) return bytes ? counted_malloc(state, bytes) : NULL;
  if (bytes == 0) {
    counted_free(state, pointer);
    return NULL;
  }
  size_t before = malloc_usable_size(pointer);
  void *moved = realloc(pointer, bytes);
  if (moved != NULL) state->malloc_size += malloc_usable_size(moved) - before;
  return moved;
}

static const JSMallocFunctions counted = {
    counted_malloc,
    counted_free,
    counted_realloc,
    (size_t(*)(const void *))malloc_usable_size,
};

/* ---- text ---------------------------------------------------------------------------------------------------------- */

static void forget_exception(void) { JS_FreeValue(context, JS_GetException(context)); }

/* String(value), which also takes symbols. */
static JSValue string_of(JSValueConst value) { return JS_Call(context, to_string, JS_UNDEFINED, 1, &value); }

/* The JSON of a value: undefined for undefined; for what has none (functions, symbols, BigInt, cycles), the JSON of
 * String(value). */
static JSValue json_of(JSValueConst value) {
  if (JS_IsUndefined(value)) return JS_UNDEFINED;
  JSValue text = JS_Call(context, stringify, JS_UNDEFINED, 1, &value);
  if (JS_IsString(text)) return text;
  if (JS_IsException(text)) forget_exception();
  JSValue shown = string_of(value);
  if (JS_IsException(shown)) {
    forget_exception();
    return JS_UNDEFINED;
  }
  text = JS_Call(context, stringify, JS_UNDEFINED, 1, (JSValueConst *)&shown);
  JS_FreeValue(context, shown);
  if (JS_IsString(text)) return text;
  if (JS_IsException(text)) forget_exception();
  return JS_UNDEFINED;
}

static void keep_value(JSValueConst value) {
  JSValue text = json_of(value);
  if (!JS_IsUndefined(text)) {
    value_text = JS_ToCStringLen(context, &value_bytes, text);
    if (value_text == NULL) forget_exception();
  }
  JS_FreeValue(context, text);
}

static void clear_value(void) {
  if (value_text != NULL) JS_FreeCString(context, value_text);
  value_text = NULL;
  value_bytes = 0;
}

/* ---- output -------------------------------------------------------------------------------------------------------- */

static void write_all(int stream, const char *text, size_t bytes) {
  while (bytes != 0) {
    ssize_t written = write(stream, text, bytes);
    if (written <= 0) return; /* nobody listens: a script cannot know */
    text += written;
    bytes -= (size_t)written;
  }
}

/* As people expect to see it: strings, numbers, errors and functions as String() gives them, other objects as JSON. */
static JSValue shown(JSValueConst value) {
  if (JS_IsObject(value) && !JS_IsError(context, value) && !JS_IsFunction(context, value)) {
    JSValue text = json_of(value);
    if (!JS_IsUndefined(text)) return text;
  }
  return string_of(value);
}

/* print, console.log, …: the arguments, blanks between them, and a line feed, in one write. `stream` is the magic. */
static JSValue print(JSContext *unused, JSValueConst this, int count, JSValueConst *arguments, int stream) {
  (void)unused, (void)this;
  DynBuf line;
  dbuf_init2(&line, runtime, (DynBufReallocFunc *)js_realloc_rt);
  for (int i = 0; i < count; i++) {
    if (i != 0) dbuf_putc(&line, ' ');
    JSValue text = shown(arguments[i]);
    size_t bytes;
    const char *utf8 = JS_IsException(text) ? NULL : JS_ToCStringLen(context, &bytes, text);
    JS_FreeValue(context, text);
    if (utf8 == NULL) {
      dbuf_free(&line);
      return JS_EXCEPTION;
    }
    dbuf_put(&line, (const uint8_t *)utf8, bytes);
    JS_FreeCString(context, utf8);
  }
  dbuf_putc(&line, '\n');
  if (dbuf_error(&line)) {
    dbuf_free(&line);
    return JS_ThrowOutOfMemory(context);
  }
  write_all(stream, (const char *)line.buf, line.size);
  dbuf_free(&line);
  return JS_UNDEFINED;
}

/* ---- exceptions ---------------------------------------------------------------------------------------------------- */

/* Writes the error and its stack to standard error, and makes its text the value. Frees the error. */
static void report(JSValue error) {
  JSValue text = string_of(error);
  if (JS_IsException(text)) {
    forget_exception();
    text = JS_NewString(context, "an exception that has no text");
  }
  size_t bytes;
  const char *utf8 = JS_IsString(text) ? JS_ToCStringLen(context, &bytes, text) : NULL;
  if (utf8 != NULL) {
    write_all(STDERR_FILENO, utf8, bytes);
    write_all(STDERR_FILENO, "\n", 1);
    JS_FreeCString(context, utf8);
    keep_value(text);
  } else { /* no memory even for the text */
    static const char plain[] = "InternalError: out of memory\n";
    write_all(STDERR_FILENO, plain, sizeof plain - 1);
  }
  JS_FreeValue(context, text);
  if (JS_IsError(context, error)) {
    JSValue stack = JS_GetPropertyStr(context, error, "stack");
    const char *lines = JS_IsString(stack) ? JS_ToCStringLen(context, &bytes, stack) : NULL;
    if (lines != NULL) {
      write_all(STDERR_FILENO, lines, bytes);
      JS_FreeCString(context, lines);
    }
    JS_FreeValue(context, stack);
  }
  JS_FreeValue(context, error);
  forget_exception();
}

/* Promises that were rejected while nobody listened. Most are listened to later in the same run. */
typedef struct rejection {
  struct rejection *next;
  JSValue promise, reason;
} rejection_t;

static rejection_t *rejections;

static void track(JSContext *unused, JSValueConst promise, JSValueConst reason, JS_BOOL is_handled, void *opaque) {
  (void)unused, (void)opaque;
  if (!is_handled) {
    rejection_t *one = malloc(sizeof *one);
    if (one == NULL) return;
    *one = (rejection_t){NULL, JS_DupValue(context, promise), JS_DupValue(context, reason)};
    rejection_t **last = &rejections;
    while (*last != NULL) last = &(*last)->next;
    *last = one;
    return;
  }
  for (rejection_t **at = &rejections; *at != NULL; at = &(*at)->next) {
    rejection_t *one = *at;
    if (JS_VALUE_GET_PTR(one->promise) != JS_VALUE_GET_PTR(promise)) continue;
    *at = one->next;
    JS_FreeValue(context, one->promise);
    JS_FreeValue(context, one->reason);
    free(one);
    return;
  }
}

/* Reports the first one, drops all; returns whether there was one. */
static int report_rejections(void) {
  int any = rejections != NULL;
  for (int first = 1; rejections != NULL; first = 0) {
    rejection_t *one = rejections;
    rejections = one->next;
    JS_FreeValue(context, one->promise);
    if (first) report(one->reason);
    else JS_FreeValue(context, one->reason);
    free(one);
  }
  return any;
}

/* ---- what the host calls ------------------------------------------------------------------------------------------- */

/* A trap where _initialize was not called: address 0 is memory like any other here. */
static void need_context(void) {
  if (context == NULL) __builtin_trap();
}

/* Room for `length` bytes; 0 when there is no memory. To be given to release(). */
EXPORT("alloc") void *guest_alloc(uint32_t length) { return length == UINT32_MAX ? NULL : malloc(length + 1); }

EXPORT("release") void guest_release(void *pointer) { free(pointer); }

/* Evaluates UTF-8 source that stands in a buffer of alloc(), then everything that became due (promises).
 * Returns 0, or 1 when an exception or a rejected promise was not caught. */
EXPORT("run") int32_t guest_run(char *source, uint32_t length) {
  need_context();
  clear_value();
  JS_UpdateStackTop(runtime);
  source[length] = '\0'; /* the engine wants one; alloc() left room for it */
  JS_SetMaxStackSize(runtime, parse_stack_bytes);
  JSValue value = JS_Eval(context, source, length, "<run>", JS_EVAL_TYPE_GLOBAL | JS_EVAL_FLAG_COMPILE_ONLY);
  JS_SetMaxStackSize(runtime, run_stack_bytes);
  if (!JS_IsException(value)) value = JS_EvalFunction(context, value);
  if (JS_IsException(value)) report(JS_GetException(context));
  int failed = JS_IsException(value);
  JSContext *ran;
  for (int status; (status = JS_ExecutePendingJob(runtime, &ran)) != 0;) {
    if (status < 0 && !failed++) report(JS_GetException(context));
    else if (status < 0) forget_exception();
  }
  /* The value of a promise is what it was fulfilled with; one that is still pending has none. */
  JSPromiseData *promise = JS_IsObject(value) ? JS_GetOpaque(value, JS_CLASS_PROMISE) : NULL;
  if (promise != NULL) {
    JSValue result = promise->promise_state == JS_PROMISE_FULFILLED
                         ? JS_DupValue(context, promise->promise_result)
                         : JS_UNDEFINED;
    JS_FreeValue(context, value);
    value = result;
  }
  if (failed) {
    while (rejections != NULL) track(context, rejections->promise, JS_UNDEFINED, 1, NULL);
  } else {
    failed = report_rejections();
  }
  if (!failed) keep_value(value);
  JS_FreeValue(context, value);
  return failed != 0;
}

/* The value of the last run as JSON in UTF-8, valid until the next; after an exception, the JSON string of its text. */
EXPORT("value") const char *guest_value(void) { return value_text; }

/* 0: undefined, or nothing that has a text. */
EXPORT("value_length") uint32_t guest_value_length(void) { return (uint32_t)value_bytes; }

/* Gives Math.random another sequence: forks of one snapshot would all have the same. */
EXPORT("reseed") void guest_reseed(uint64_t seed) {
  need_context();
  seed += 0x9e3779b97f4a7c15; /* splitmix64, so that neighbouring seeds give unlike sequences */
  seed = (seed ^ seed >> 30) * 0xbf58476d1ce4e5b9;
  seed = (seed ^ seed >> 27) * 0x94d049bb133111eb;
  seed ^= seed >> 31;
  context->random_state = seed ? seed : 1;
}

/* Says how large wasmtime's stack for this guest is, where that is not 512 KiB: from 64 KiB to 1.5 MiB. */
EXPORT("set_stack") void guest_set_stack(uint32_t bytes) {
  need_context();
  if (bytes < 64 * 1024) bytes = 64 * 1024;
  if (bytes > 1536 * 1024) bytes = 1536 * 1024;
  run_stack_bytes = bytes / 512 * 176;
  parse_stack_bytes = bytes / 512 * 52;
  JS_SetMaxStackSize(runtime, run_stack_bytes);
}

static void define(JSValueConst object, const char *name, int stream) {
  JSValue function = JS_NewCFunctionMagic(context, print, name, 1, JS_CFUNC_generic_magic, stream);
  if (JS_SetPropertyStr(context, object, name, function) < 0) __builtin_trap();
}

/* Part of _initialize. Traps when there is no memory for a context: there is nothing to run then. */
__attribute__((constructor)) static void initialize(void) {
  runtime = JS_NewRuntime2(&counted, NULL);
  if (runtime == NULL) __builtin_trap();
  context = JS_NewContext(runtime);
  need_context();
  guest_set_stack(512 * 1024);
  JS_SetHostPromiseRejectionTracker(runtime, track, NULL);

  JSValue global = JS_GetGlobalObject(context), console = JS_NewObject(context);
  JSValue json = JS_GetPropertyStr(context, global, "JSON");
  stringify = JS_GetPropertyStr(context, json, "stringify");
  JS_FreeValue(context, json);
  to_string = JS_GetPropertyStr(context, global, "String");
  define(global, "print", STDOUT_FILENO);
  define(console, "log", STDOUT_FILENO);
  define(console, "info", STDOUT_FILENO);
  define(console, "debug", STDOUT_FILENO);
  define(console, "warn", STDERR_FILENO);
  define(console, "error", STDERR_FILENO);
  if (JS_SetPropertyStr(context, global, "console", console) < 0) __builtin_trap();
  JS_FreeValue(context, global);

  uint64_t seed;
  if (getentropy(&seed, sizeof seed) != 0) __builtin_trap();
  guest_reseed(seed);
  JS_RunGC(runtime);
  JS_SetGCThreshold(runtime, runtime->malloc_state.malloc_size + UNCOLLECTED_BYTES);
}
