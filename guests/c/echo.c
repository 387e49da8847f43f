/* echo: a command that shows all a WASI command gets, and gives back all it can give.
 *
 * Writes its arguments and its environment, a line each, then its standard input to standard output; one line to
 * standard error; and exits with the status that its last argument names (0 when that is no number).
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

/* The whole of it, or the end of the program: a host that refuses output shall see it. */
static void write_all(int fd, const char *bytes, size_t length) {
  while (length > 0) {
    ssize_t written = write(fd, bytes, length);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) _Exit(125);
    bytes += written;
    length -= (size_t)written;
  }
}

static void write_line(int fd, const char *label, const char *text) {
  write_all(fd, label, strlen(label));
  write_all(fd, text, strlen(text));
  write_all(fd, "\n", 1);
}

int main(int argc, char **argv) {
  for (int i = 0; i < argc; i++) write_line(STDOUT_FILENO, "arg ", argv[i]);
  for (char **variable = environ; *variable != NULL; variable++) write_line(STDOUT_FILENO, "env ", *variable);

  static char buffer[4096];
  ssize_t length;
  while ((length = read(STDIN_FILENO, buffer, sizeof buffer)) > 0) write_all(STDOUT_FILENO, buffer, (size_t)length);

  write_line(STDERR_FILENO, "echo: input ", length < 0 ? "failed" : "ended");
  return argc > 1 ? atoi(argv[argc - 1]) : 0;
}
