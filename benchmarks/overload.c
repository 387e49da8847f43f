/* An open load over HTTP/1.1: requests begin when their time has come, whether or not earlier ones were answered.
 *
 * usage: overload PORT SECONDS SEED SURGE FROM UNTIL < streams > times
 *
 * A stream in: "RATE CONNECTIONS BYTES\n" and the request, BYTES long. Its arrivals come by chance (exponential gaps, so
 * that bursts occur), RATE a second, and SURGE times as many from second FROM to UNTIL; each takes a free connection of
 * the stream, one request at a time on each.
 *
 *     due ────────► sent ────────► done         latency is done - due; sent - due is this program's own lateness
 *       no connection free: NOT_SENT            it could not be driven, and is reported as that
 *
 * Out: the time of the monotonic clock at which it began, in ns, then a `record` for each arrival; see there. What is
 * not answered within DRAIN_NS of the end is UNANSWERED. Connections that the server closes are opened again; a request
 * that met a connection closed while idle is sent again, as clients do, with its time as it was.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_STREAMS = 64, ANSWER_BYTES = 16384, EVENTS = 512 };
enum { UNANSWERED = 0, BROKEN = 1, NOT_SENT = 2 }; /* in place of a status */

static const uint64_t DRAIN_NS = 10000000000u;

typedef struct record {
  uint32_t stream, status;
  uint64_t due_ns, sent_ns, done_ns; /* since the beginning */
} record;

typedef struct connection {
  struct stream *stream;
  struct connection *next; /* of those that are free, the one used last first */
  int fd;
  int busy, again; /* again: the request was sent on a connection that had been idle, and nothing has come yet */
  record of;
  size_t got;
  char answer[ANSWER_BYTES];
} connection;

typedef struct stream {
  double rate;
  unsigned connections, number;
  size_t bytes;
  char *request;
  double due_ns;
  connection *all, *free;
} stream;

static stream streams[MOST_STREAMS];
static unsigned stream_count;
static record *records;
static size_t record_count, record_room;
static uint64_t begun_ns;
static int poll_fd;
static struct sockaddr_in server;
static double surge, surge_from_ns, surge_until_ns;
static size_t in_flight;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static uint64_t clock_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t now_ns(void) { return clock_ns() - begun_ns; }

static void keep(record one) {
  if (record_count == record_room) {
    record_room = record_room ? 2 * record_room : 1 << 16;
    records = realloc(records, record_room * sizeof *records);
    if (records == NULL) fail("realloc");
  }
  records[record_count++] = one;
}

static void open_connection(connection *one) {
  one->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (one->fd < 0) fail("socket");
  /* A loopback connection is there at once, or there are more than the server lets wait. */
  if (connect(one->fd, (struct sockaddr *)&server, sizeof server) != 0) fail("connect");
  int on = 1;
  setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  fcntl(one->fd, F_SETFL, O_NONBLOCK);
  struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = one};
  if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, one->fd, &wanted) != 0) fail("epoll_ctl");
}

static void ended(connection *one, unsigned status) {
  one->of.status = status;
  one->of.done_ns = now_ns();
  keep(one->of);
  one->busy = 0;
  one->next = one->stream->free;
  one->stream->free = one;
  in_flight--;
}

static void send_request(connection *one) {
  const stream *its = one->stream;
  one->got = 0;
  /* Requests are small beside a socket's buffer: what does not go at once does not go. */
  ssize_t sent = send(one->fd, its->request, its->bytes, MSG_NOSIGNAL);
  if (sent == (ssize_t)its->bytes) return;
  if (sent >= 0 || errno == EAGAIN) ended(one, BROKEN);
  /* else the server has closed it; the poll will say so */
}

static void closed(connection *one) {
  close(one->fd);
  open_connection(one);
  if (!one->busy) return;
  if (one->got != 0 || !one->again) {
    ended(one, BROKEN);
    return;
  }
  one->again = 0;
  send_request(one);
}

/* Returns the length of an answer that is whole, else 0. */
static size_t whole(const connection *one) {
  const char *end = memmem(one->answer, one->got, "\r\n\r\n", 4);
  if (end == NULL) return 0;
  size_t head = (size_t)(end - one->answer) + 4, body = 0;
  for (const char *line = one->answer; line < end; line++)
    if (line[0] == '\n' && strncasecmp(line + 1, "content-length:", 15) == 0) body = strtoul(line + 16, NULL, 10);
  return one->got >= head + body ? head + body : 0;
}

static void readable(connection *one) {
  ssize_t got = recv(one->fd, one->answer + one->got, sizeof one->answer - 1 - one->got, 0);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) {
    closed(one);
    return;
  }
  one->got += (size_t)got;
  one->answer[one->got] = 0;
  if (!one->busy) return;
  if (whole(one)) ended(one, (unsigned)strtoul(one->answer + 9, NULL, 10));
}

static double after_ns(double at_ns, double rate) {
  if (at_ns >= surge_from_ns && at_ns < surge_until_ns) return at_ns - log(1 - drand48()) * 1e9 / (rate * surge);
  return at_ns - log(1 - drand48()) * 1e9 / rate;
}

static void arrive(stream *its) {
  uint64_t due_ns = (uint64_t)its->due_ns;
  its->due_ns = after_ns(its->due_ns, its->rate);
  connection *one = its->free;
  record of = {.stream = its->number, .status = NOT_SENT, .due_ns = due_ns};
  if (one == NULL) {
    keep(of);
    return;
  }
  its->free = one->next;
  of.sent_ns = now_ns();
  one->of = of;
  one->busy = one->again = 1;
  in_flight++;
  send_request(one);
}

/* Begins what is due; returns when the next is. */
static double begin_due(double until_ns) {
  double next_ns = until_ns;
  for (unsigned i = 0; i < stream_count; i++) {
    stream *its = &streams[i];
    while (its->due_ns < until_ns && its->due_ns <= (double)now_ns()) arrive(its);
    if (its->due_ns < next_ns) next_ns = its->due_ns;
  }
  return next_ns;
}

static void handle(int milliseconds, uint64_t at_most_ns) {
  static struct epoll_event events[EVENTS];
  struct timespec time = {.tv_sec = (time_t)(at_most_ns / 1000000000u), .tv_nsec = (long)(at_most_ns % 1000000000u)};
  int count = milliseconds ? epoll_wait(poll_fd, events, EVENTS, milliseconds)
                           : epoll_pwait2(poll_fd, events, EVENTS, &time, NULL);
  for (int i = 0; i < count; i++) readable(events[i].data.ptr);
}

static void read_streams(void) {
  double rate;
  unsigned connections;
  size_t bytes;
  while (scanf("%lf %u %zu", &rate, &connections, &bytes) == 3) {
    if (stream_count == MOST_STREAMS || getchar() != '\n') exit(2);
    stream *its = &streams[stream_count];
    *its = (stream){.rate = rate, .connections = connections, .number = stream_count, .bytes = bytes};
    stream_count++;
    its->request = malloc(bytes);
    its->all = calloc(connections, sizeof *its->all);
    if (its->request == NULL || its->all == NULL) fail("malloc");
    if (fread(its->request, 1, bytes, stdin) != bytes) exit(2);
    for (unsigned i = 0; i < connections; i++) {
      connection *one = &its->all[i];
      one->stream = its;
      open_connection(one);
      one->next = its->free;
      its->free = one;
    }
  }
}

int main(int count, char **words) {
  if (count != 7) return 2;
  server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(words[1]))};
  server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  double until_ns = atof(words[2]) * 1e9;
  srand48(atol(words[3]));
  surge = atof(words[4]);
  surge_from_ns = atof(words[5]) * 1e9;
  surge_until_ns = atof(words[6]) * 1e9;
  poll_fd = epoll_create1(0);
  if (poll_fd < 0) fail("epoll_create1");
  read_streams();
  begun_ns = clock_ns();
  for (unsigned i = 0; i < stream_count; i++) streams[i].due_ns = after_ns(0, streams[i].rate);
  while ((double)now_ns() < until_ns) {
    double wait_ns = begin_due(until_ns) - (double)now_ns();
    handle(0, wait_ns > 0 ? (uint64_t)wait_ns : 0);
  }
  uint64_t drained_ns = now_ns() + DRAIN_NS;
  while (in_flight && now_ns() < drained_ns) handle(10, 0);
  for (unsigned i = 0; i < stream_count; i++)
    for (unsigned j = 0; j < streams[i].connections; j++)
      if (streams[i].all[j].busy) ended(&streams[i].all[j], UNANSWERED);
  fwrite(&begun_ns, sizeof begun_ns, 1, stdout);
  fwrite(records, sizeof *records, record_count, stdout);
  return fflush(stdout) == 0 ? 0 : 1;
}
