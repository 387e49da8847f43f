/* WASI without Python: tables captured and attached, whatever a file says of them; one grant used by many threads. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "bridge_fixture.h"
#include "wasi.h"

enum { THREADS = 4 };

/* open("f") in the directory 3, to read or with O_CREAT to write; returns its number, or -errno. */
static const char reader_wat[] =
    "(module (import \"wasi_snapshot_preview1\" \"path_open\" (func $open"
    "  (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))"
    " (import \"wasi_snapshot_preview1\" \"fd_read\" (func $read (param i32 i32 i32 i32) (result i32)))"
    " (import \"wasi_snapshot_preview1\" \"fd_close\" (func $close (param i32) (result i32)))"
    " (memory (export \"memory\") 1)"
    " (data (i32.const 0) \"f\") (data (i32.const 8) \"\\40\\00\\00\\00\\40\\00\\00\\00\")"
    " (func (export \"open\") (param i32) (result i32) (local $error i32)"
    "  (local.set $error (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1) (local.get 0)"
    "   (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))"
    "  (if (result i32) (local.get $error) (then (i32.sub (i32.const 0) (local.get $error)))"
    "   (else (i32.load (i32.const 16)))))"
    " (func (export \"read\") (param i32) (result i32)"
    "  (drop (call $read (local.get 0) (i32.const 8) (i32.const 1) (i32.const 16))) (i32.load (i32.const 16)))"
    " (func (export \"close\") (param i32) (result i32) (call $close (local.get 0))))";
enum { OPEN, READ, CLOSE };
static const export_row exports[] = {{"open", "i", "i"}, {"read", "i", "i"}, {"close", "i", "i"}};

static char folder[] = "/tmp/sandhost-wasi-XXXXXX";

static sh_host *new_host(void) {
  sh_host_options options = host_options();
  return open_host(&options);
}

static sh_plugin *new_reader(sh_host *host) {
  sh_plugin *plugin = compile(host, reader_wat);
  add_memory(plugin, 1, 16);
  CHECK_EQ(sh_plugin_wasi(plugin, 0), SH_OK);
  ADD_EXPORTS(plugin, exports);
  CHECK_EQ(sh_plugin_link(plugin), SH_OK);
  return plugin;
}

/* Directories with these names, each the folder; "-" before a name: nothing behind it. */
static sh_wasi *new_grant(size_t count, const char *const *names) {
  const char *hosts[8], *guests[8];
  uint8_t writable[8];
  for (size_t k = 0; k < count; k++) {
    bool nothing = names[k][0] == '-';
    hosts[k] = nothing ? NULL : folder;
    guests[k] = names[k] + nothing;
    writable[k] = 1;
  }
  return sh_wasi_new(&(sh_wasi_options){
      .host_dirs = hosts, .guest_dirs = guests, .writable = writable, .dir_count = count, .output_limit = 100});
}

static uint64_t new_guest(sh_plugin *plugin, sh_wasi *grant) {
  uint64_t guest = sh_spawn(plugin, NULL, NULL, &no_limits, grant);
  CHECK(guest);
  return guest;
}

static int64_t call(uint64_t guest, uint32_t index, int64_t argument) {
  return sh_call_ints(guest, index, argument, 0, 0, 0);
}

static void end(uint64_t guest) {
  sh_reclaim reclaim;
  CHECK_EQ(sh_close(guest, -1, &reclaim), SH_OK);
}

/* ---- captured tables ---------------------------------------------------------------------------------------------- */

static void a_captured_table_is_what_was_there_and_its_lies_are_found(void) {
  sh_host *host = new_host();
  sh_plugin *plugin = new_reader(host);
  sh_wasi *grant = new_grant(3, (const char *const[]){"/a", "-/b", "/long/name"});
  sh_wasi *others = new_grant(2, (const char *const[]){"/long/name", "/c"});
  CHECK(grant && others);
  uint64_t id = new_guest(plugin, grant), fork_id = new_guest(plugin, NULL);
  shi_guest *guest, *fork;
  CHECK_EQ(shi_guest_enter(id, &guest), SH_OK);
  CHECK_EQ(shi_guest_enter(fork_id, &fork), SH_OK);
  shi_wasi_state state;
  CHECK_EQ(shi_wasi_capture(guest, &state), SH_OK);

  shi_wasi_detach(fork);
  CHECK_EQ(shi_wasi_attach(fork, others, &state), SH_OK);
  CHECK_EQ(fork->file_count, 7);
  CHECK_EQ(strcmp(fork->files[5].name, "/long/name"), 0);
  CHECK(fork->files[5].fd >= 0);
  CHECK_EQ(fork->files[3].fd, -1);
  CHECK_EQ(strcmp(fork->files[6].name, "/c"), 0);

  for (size_t length = 0; length < state.length; length++) CHECK(!shi_wasi_state_is_sound(state.bytes, length));
  uint8_t bytes[256];
  CHECK(state.length < sizeof bytes);
  srand(1);
  int sound = 0;
  for (int round = 0; round < 20000; round++) {
    memcpy(bytes, state.bytes, state.length);
    for (int k = rand() % 3; k >= 0; k--)
      bytes[(size_t)rand() % state.length] = (uint8_t)(rand() % 4 ? rand() % 8 : rand());
    shi_wasi_state altered = {.bytes = bytes, .length = state.length};
    shi_wasi_detach(fork);
    int status = shi_wasi_attach(fork, others, &altered);
    CHECK(status == SH_OK || status == SH_ARGUMENT);
    CHECK_EQ(status == SH_OK, shi_wasi_state_is_sound(bytes, state.length));
    CHECK(fork->file_count <= SHI_FILES_MAX);
    sound += status == SH_OK;
  }
  CHECK(sound > 0 && sound < 20000);

  free(state.bytes);
  shi_guest_leave(guest);
  shi_guest_leave(fork);
  end(id);
  end(fork_id);
  sh_wasi_release(grant);
  sh_wasi_release(others);
  end_host(host, plugin);
}

static void an_open_file_is_named(void) {
  sh_host *host = new_host();
  sh_plugin *plugin = new_reader(host);
  sh_wasi *grant = new_grant(1, (const char *const[]){"/a"});
  uint64_t id = new_guest(plugin, grant);
  CHECK_EQ(call(id, OPEN, 0), 4);
  shi_guest *guest;
  shi_wasi_state state;
  CHECK_EQ(shi_guest_enter(id, &guest), SH_OK);
  CHECK_EQ(shi_wasi_capture(guest, &state), SH_ARGUMENT);
  CHECK(strstr(sh_last_error()->message, "fd 4 (/a/f)"));
  shi_guest_leave(guest);
  CHECK_EQ(call(id, CLOSE, 4), 0);
  end(id);
  sh_wasi_release(grant);
  end_host(host, plugin);
}

/* ---- grants ------------------------------------------------------------------------------------------------------- */

typedef struct {
  sh_plugin *plugin;
  sh_wasi *grant;
} shared;

static void *read_files(void *argument) {
  const shared *with = argument;
  for (int k = 0; k < 100; k++) {
    uint64_t guest = new_guest(with->plugin, with->grant);
    for (int file = 4; file < 8; file++) {
      CHECK_EQ(call(guest, OPEN, 0), file);
      CHECK_EQ(call(guest, READ, file), 5);
    }
    CHECK_EQ(call(guest, CLOSE, 5), 0);
    end(guest);
  }
  return NULL;
}

static void threads_share_a_grant(void) {
  sh_host *host = new_host();
  shared with = {new_reader(host), new_grant(1, (const char *const[]){"/"})};
  CHECK(with.grant);
  pthread_t threads[THREADS];
  for (int k = 0; k < THREADS; k++) CHECK_EQ(pthread_create(&threads[k], NULL, read_files, &with), 0);
  for (int k = 0; k < THREADS; k++) CHECK_EQ(pthread_join(threads[k], NULL), 0);
  CHECK_EQ(atomic_load(&with.grant->references), 1);
  uint64_t guest = new_guest(with.plugin, with.grant);
  sh_wasi_release(with.grant); /* the guest keeps it */
  CHECK_EQ(call(guest, OPEN, 0), 4);
  end(guest);
  CHECK_EQ(sh_host_close(host), SH_OK);
  sh_plugin_release(with.plugin);
  sh_host_release(host);
}

static void a_child_of_a_fork_lets_go_of_a_grant(void) {
  sh_host *host = new_host();
  sh_plugin *plugin = new_reader(host);
  sh_wasi *grant = new_grant(1, (const char *const[]){"/"});
  uint64_t guest = new_guest(plugin, grant);
  pid_t child = fork();
  if (child == 0) {
    sh_wasi_release(grant);
    _exit(sh_spawn(plugin, NULL, NULL, &no_limits, NULL) == 0 && sh_last_error()->status == SH_FORKED ? 0 : 1);
  }
  int status;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  CHECK_EQ(call(guest, OPEN, 0), 4);
  CHECK_EQ(call(guest, READ, 4), 5);
  end(guest);
  sh_wasi_release(grant);
  end_host(host, plugin);
}

static void without_openat2_a_directory_is_refused_and_nothing_leaks(void) {
  int before = open("/dev/null", O_RDONLY | O_CLOEXEC);
  close(before);
  for (int error = 1; error < 40; error++) {
    sh_fault_inject(SH_OS_OPEN_BENEATH, 1, 100, error); /* the first directory is fine */
    CHECK(!new_grant(2, (const char *const[]){"/a", "/b"}));
    CHECK_EQ(sh_last_error()->status, SH_ARGUMENT);
    bool missing = error == ENOSYS || error == EPERM;
    CHECK_EQ(strstr(sh_last_error()->message, "openat2") != NULL, missing);
    sh_fault_inject(SH_OS_OPEN_BENEATH, 0, 0, 0);
  }
  int after = open("/dev/null", O_RDONLY | O_CLOEXEC);
  close(after);
  CHECK_EQ(after, before);
}

int main(void) {
  open_wasmtime();
  CHECK(mkdtemp(folder));
  char path[64];
  snprintf(path, sizeof path, "%s/f", folder);
  FILE *file = fopen(path, "w");
  CHECK(file && fputs("hello", file) >= 0 && fclose(file) == 0);
  RUN(a_captured_table_is_what_was_there_and_its_lies_are_found);
  RUN(an_open_file_is_named);
  RUN(threads_share_a_grant);
  RUN(without_openat2_a_directory_is_refused_and_nothing_leaks);
  RUN(a_child_of_a_fork_lets_go_of_a_grant);
  unlink(path);
  rmdir(folder);
  return 0;
}
