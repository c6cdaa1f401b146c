/* A load generator for line echo servers: one thread, epoll, a fixed number of operations.
 *
 * Every client is a closed loop: it sends a batch of messages, waits for exactly these bytes to come
 * back, and sends the next. An operation is one message. Every byte of every reply is compared. A
 * stream that loses, changes or cuts anything ends the run with status 1; datagrams that do not come
 * back within a second are counted.
 *
 * usage: load tcp|udp HOST PORT CLIENTS OPERATIONS [SIZE [BATCH [keep|close]]]
 *        load idle HOST PORT CLIENTS
 *
 *   SIZE   bytes of a message, its newline included      (64)
 *   BATCH  messages per write                            (1)
 *   keep   one connection per client for the whole run
 *   close  a new connection for each batch               (default for tcp)
 *
 * prints one line of JSON: operations, lost, seconds, and percentiles of the time from the start of a
 * batch (with "close": from before connect) to the last byte of its echo, in microseconds.
 *
 * "idle" opens the connections, has one line echoed on each, so that the server has met every one of
 * them, prints a line of JSON, and holds them open until its standard input ends; it then prints how many
 * the server has closed meanwhile.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SEQUENCE = 14, MIN_SIZE = SEQUENCE + 2, EVENTS = 256, RECEIVE = 256 * 1024, AT_ONCE = 128 };
static const double DATAGRAM_LOST = 1.0;  /* seconds */
static const double STALLED = 10.0;       /* seconds without a single reply: something hangs */

struct client {
    int fd;
    int index;
    int writing;      /* EPOLLOUT is asked for */
    size_t sent, received;
    double started;   /* 0: nothing under way */
    char *batch;      /* the bytes that are sent, and that must come back */
};

static int datagrams, reconnect, holding, epoll;
static size_t size = 64, batch = 1, length;
static struct sockaddr_in server;
static struct client *clients;
static int client_count;
static long operations, issued, finished, lost, late;
static unsigned long long sequence;
static double *latencies;
static size_t latency_count;
static char incoming[RECEIVE];

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, " (%ld of %ld operations done)\n", finished, operations);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void watch(struct client *c, int operation, int writing) {
    struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(epoll, operation, c->fd, &event)) fail("epoll_ctl: %s", strerror(errno));
    c->writing = writing;
}

/* Each client has a source address of its own in 127/8, so that the ports of one address, occupied
 * by TIME_WAIT, do not limit how many connections a run can make. */
static void open_socket(struct client *c) {
    int on = 1;
    struct sockaddr_in source = {.sin_family = AF_INET};
    source.sin_addr.s_addr = htonl(0x7f010001u + (unsigned)c->index);
    c->fd = socket(AF_INET, (datagrams ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK, 0);
    if (c->fd < 0) fail("socket: %s", strerror(errno));
    if (!datagrams) setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (ntohl(server.sin_addr.s_addr) >> 24 == 127) {
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (bind(c->fd, (struct sockaddr *)&source, sizeof source)) fail("bind: %s", strerror(errno));
    }
    int connecting = connect(c->fd, (struct sockaddr *)&server, sizeof server);
    if (connecting && errno != EINPROGRESS) fail("connect: %s", strerror(errno));
    watch(c, EPOLL_CTL_ADD, connecting != 0);
}

static void send_rest(struct client *c) {
    while (c->sent < length) {
        ssize_t n = send(c->fd, c->batch + c->sent, length - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == ENOTCONN)) break;
        if (n < 0 && datagrams) return; /* refused or no room: the timeout counts it */
        if (n < 0) fail("send: %s", strerror(errno));
        c->sent += (size_t)n;
    }
    if (c->writing != (c->sent < length)) watch(c, EPOLL_CTL_MOD, c->sent < length);
}

static void start(struct client *c) {
    if (issued >= operations) {
        c->started = 0;
        if (c->fd >= 0) close(c->fd);
        c->fd = -1;
        return;
    }
    issued += (long)batch;
    for (size_t i = 0; i < batch; i++) {
        char digits[SEQUENCE + 1];
        snprintf(digits, sizeof digits, "%0*llu", SEQUENCE, ++sequence);
        memcpy(c->batch + i * size, digits, SEQUENCE);
    }
    c->sent = c->received = 0;
    c->started = now();
    if (c->fd < 0) open_socket(c);
    if (!c->writing) send_rest(c);
}

static void finish(struct client *c, double when) {
    latencies[latency_count++] = when - c->started;
    finished += (long)batch;
    if (holding) {
        c->started = 0; /* stays open; the next one takes its turn */
        if (issued < operations) start(&clients[issued]);
        return;
    }
    if (reconnect) {
        close(c->fd);
        c->fd = -1;
    }
    start(c);
}

static void receive_stream(struct client *c) {
    while (c->fd >= 0) {
        ssize_t n = recv(c->fd, incoming, sizeof incoming, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n < 0) fail("recv: %s", strerror(errno));
        if (n == 0) fail("closed by the server after %zu of %zu bytes", c->received, length);
        if (c->received + (size_t)n > length) fail("more bytes came back than were sent");
        if (memcmp(incoming, c->batch + c->received, (size_t)n)) fail("other bytes came back than were sent");
        c->received += (size_t)n;
        if (c->received == length) {
            finish(c, now());
            return; /* the next event tells about the next batch */
        }
        if ((size_t)n < sizeof incoming) return;
    }
}

static void receive_datagram(struct client *c) {
    ssize_t n = recv(c->fd, incoming, sizeof incoming, 0);
    if (n < 0) return; /* nothing there, or an ICMP error: the timeout counts it */
    if ((size_t)n != length || memcmp(incoming + SEQUENCE, c->batch + SEQUENCE, length - SEQUENCE))
        fail("another datagram came back than was sent");
    int order = memcmp(incoming, c->batch, SEQUENCE);
    if (order > 0) fail("a datagram came back that was never sent");
    if (order < 0) late++; /* counted as lost already */
    else finish(c, now());
}

static void expire(int count, double when) {
    for (int i = 0; i < count; i++) {
        struct client *c = &clients[i];
        if (c->started && when - c->started > DATAGRAM_LOST) {
            lost++;
            finished++;
            start(c);
        }
    }
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(double share) {
    if (!latency_count) return 0;
    size_t i = (size_t)(share * (double)(latency_count - 1) + 0.5);
    return latencies[i] * 1e6;
}

static void prepare(int count) {
    clients = calloc((size_t)count, sizeof *clients);
    latencies = malloc(sizeof *latencies * ((size_t)operations / batch + 1));
    if (!clients || !latencies) fail("out of memory");
    for (int i = 0; i < count; i++) {
        clients[i].fd = -1;
        clients[i].index = i;
        clients[i].batch = malloc(length);
        if (!clients[i].batch) fail("out of memory");
        for (size_t j = 0; j < length; j++)
            clients[i].batch[j] = j % size == size - 1 ? '\n' : (char)('a' + (j + (size_t)i) % 26);
    }
}

static void run(int count) {
    struct epoll_event events[EVENTS];
    double progress = now(), expired = progress;
    long before = 0;
    int at_once = holding && count > AT_ONCE ? AT_ONCE : count; /* no more than the kernel queues */
    for (int i = 0; i < at_once; i++) start(&clients[i]);
    while (finished < operations) {
        int n = epoll_wait(epoll, events, EVENTS, 100);
        if (n < 0 && errno != EINTR) fail("epoll_wait: %s", strerror(errno));
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) send_rest(c);
            if (c->fd < 0 || !(events[i].events & ~EPOLLOUT)) continue;
            if (datagrams) receive_datagram(c);
            else receive_stream(c);
        }
        double when = now();
        if (datagrams && when - expired > 0.1) {
            expire(count, when);
            expired = when;
        }
        if (finished != before) {
            before = finished;
            progress = when;
        } else if (when - progress > STALLED) {
            fail("no reply for %.0f seconds", STALLED);
        }
    }
}

/* Keep the connections until nobody wants them any more; tell how many the server has closed. */
static void hold(void) {
    char byte;
    int closed = 0;
    printf("{\"open\": %d}\n", client_count);
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0) {}
    for (int i = 0; i < client_count; i++)
        closed += recv(clients[i].fd, &byte, 1, MSG_DONTWAIT) >= 0 || errno != EAGAIN;
    printf("{\"closed\": %d}\n", closed);
}

int main(int argc, char **argv) {
    datagrams = argc > 1 && !strcmp(argv[1], "udp");
    holding = argc > 1 && !strcmp(argv[1], "idle");
    if (argc < (holding ? 5 : 6)) {
        fputs("usage: load tcp|udp HOST PORT CLIENTS OPERATIONS [SIZE [BATCH [keep|close]]]\n"
              "       load idle HOST PORT CLIENTS\n", stderr);
        return 2;
    }
    server.sin_family = AF_INET;
    server.sin_port = htons((uint16_t)atoi(argv[3]));
    int count = client_count = atoi(argv[4]);
    operations = holding ? count : atol(argv[5]);
    if (argc > 6) size = (size_t)atol(argv[6]);
    if (argc > 7) batch = (size_t)atol(argv[7]);
    reconnect = argc > 8 ? !strcmp(argv[8], "close") : !datagrams && !holding;
    length = size * batch;
    if (inet_pton(AF_INET, argv[2], &server.sin_addr) != 1) fail("%s is no IPv4 address", argv[2]);
    if (count < 1 || count > 60000) fail("the number of clients is between 1 and 60000");
    if (size < MIN_SIZE) fail("a message has at least %d bytes", MIN_SIZE);
    if (batch < 1 || operations < 1 || operations % (long)batch) fail("operations come in whole batches");
    if (datagrams && (reconnect || length > 65507 || batch != 1)) fail("a datagram is one kept, unbatched message");

    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll = epoll_create1(0);
    prepare(count);

    double began = now();
    run(count);
    double seconds = now() - began;
    if (holding) {
        hold();
        return 0;
    }
    qsort(latencies, latency_count, sizeof *latencies, compare);
    printf("{\"operations\": %ld, \"lost\": %ld, \"late\": %ld, \"seconds\": %.6f, \"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f}\n",
           finished, lost, late, seconds, percentile(0.50), percentile(0.99), percentile(1));
    return 0;
}
