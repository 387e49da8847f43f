/* files: a command that works on a folder which the host opened for it: reads, writes and lists.
 *
 *   files read PATH          the file's bytes to standard output
 *   files write PATH TEXT    makes the file, or empties it, and writes TEXT
 *   files list PATH          the names in the folder, one a line, in the order the host gives
 *
 * Exits with 0; 1 after an error of the host, whose number (a WASI errno) it writes to standard error; 2 for bad usage.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static void say(int fd, const char *text) { (void)!write(fd, text, strlen(text)); }

static int failed(const char *operation, const char *path) {
  char number[] = {(char)('0' + errno / 10 % 10), (char)('0' + errno % 10), '\n', 0};
  say(STDERR_FILENO, "files: ");
  say(STDERR_FILENO, operation);
  say(STDERR_FILENO, " ");
  say(STDERR_FILENO, path);
  say(STDERR_FILENO, ": errno ");
  say(STDERR_FILENO, number);
  return 1;
}

static int read_file(const char *path) {
  int fd = open(path, O_RDONLY);
  if (fd < 0) return failed("open", path);
  static char buffer[4096];
  ssize_t length;
  while ((length = read(fd, buffer, sizeof buffer)) > 0)
    if (write(STDOUT_FILENO, buffer, (size_t)length) != length) return failed("write", "stdout");
  return length < 0 ? failed("read", path) : 0;
}

static int write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  if (fd < 0) return failed("open", path);
  size_t length = strlen(text);
  if (write(fd, text, length) != (ssize_t)length) return failed("write", path);
  return close(fd) < 0 ? failed("close", path) : 0;
}

static int list_folder(const char *path) {
  DIR *folder = opendir(path);
  if (folder == NULL) return failed("list", path);
  for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    say(STDOUT_FILENO, entry->d_name);
    say(STDOUT_FILENO, "\n");
  }
  return closedir(folder) < 0 ? failed("close", path) : 0;
}

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "read") == 0) return read_file(argv[2]);
  if (argc == 4 && strcmp(argv[1], "write") == 0) return write_file(argv[2], argv[3]);
  if (argc == 3 && strcmp(argv[1], "list") == 0) return list_folder(argv[2]);
  say(STDERR_FILENO, "usage: files read PATH | write PATH TEXT | list PATH\n");
  return 2;
}
