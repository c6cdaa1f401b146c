/* The limit: an echo server as one writes it in C, one thread, epoll, nothing that is not needed.
 *
 * usage: epoll tcp|udp       serves on a free port of 127.0.0.1, which it prints, until it is killed
 *
 * Over TCP it echoes lines: whole ones at once, the beginning of one is kept until the rest has come. What
 * a client does not take waits, and nothing more is read from that client meanwhile. Over UDP it echoes
 * datagrams.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 256, CHUNK = 65536, BACKLOG = 2048 };

struct connection {
    int fd;
    int writing;       /* EPOLLOUT is asked for, and nothing else */
    size_t held, room; /* bytes of an incomplete line, or such as the client has not taken */
    char *bytes;       /* NULL as long as there are none */
};

static int epoll;
static char chunk[CHUNK];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void end(struct connection *c) {
    close(c->fd);
    free(c->bytes);
    free(c);
}

static int keep(struct connection *c, const char *data, size_t length) {
    if (c->held + length > c->room) {
        c->room = 2 * (c->held + length);
        char *bytes = realloc(c->bytes, c->room);
        if (!bytes) return -1;
        c->bytes = bytes;
    }
    memcpy(c->bytes + c->held, data, length);
    c->held += length;
    return 0;
}

static void want(struct connection *c, int writing) {
    struct epoll_event event = {.events = writing ? EPOLLOUT : EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
    c->writing = writing;
}

/* Send the whole lines at the beginning of data, keep the rest. */
static void answer(struct connection *c, const char *data, size_t length) {
    const char *last = memrchr(data, '\n', length);
    size_t whole = last ? (size_t)(last - data) + 1 : 0;
    ssize_t sent = whole ? send(c->fd, data, whole, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;
    if (sent < 0 && errno == EAGAIN) sent = 0;
    if (sent < 0) {
        end(c);
        return;
    }
    size_t left = length - (size_t)sent;
    if (data == c->bytes) { /* what was held is being sent */
        memmove(c->bytes, c->bytes + sent, left);
        c->held = left;
    } else if (left && keep(c, data + sent, left)) {
        end(c);
        return;
    }
    if (!left && c->bytes) {
        free(c->bytes);
        c->bytes = NULL;
        c->room = 0;
    }
    if (c->writing != ((size_t)sent < whole)) want(c, (size_t)sent < whole);
}

static void readable(struct connection *c) {
    ssize_t n = recv(c->fd, chunk, sizeof chunk, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) end(c);
    else if (!c->held) answer(c, chunk, (size_t)n);
    else if (keep(c, chunk, (size_t)n)) end(c);
    else if (memchr(chunk, '\n', (size_t)n)) answer(c, c->bytes, c->held);
}

static void take(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) return;
        struct connection *c = calloc(1, sizeof *c);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (!c) fail("calloc");
        c->fd = fd;
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
    }
}

static void echo_lines(int listener) {
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event)) fail("epoll_ctl");
    for (;;) {
        int n = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) take(listener);
            else if (c->writing) answer(c, c->bytes, c->held);
            else readable(c);
        }
    }
}

static void echo_datagrams(int sock) {
    for (;;) {
        struct sockaddr_in peer;
        socklen_t size = sizeof peer;
        ssize_t n = recvfrom(sock, chunk, sizeof chunk, 0, (struct sockaddr *)&peer, &size);
        if (n >= 0) sendto(sock, chunk, (size_t)n, 0, (struct sockaddr *)&peer, size);
    }
}

int main(int argc, char **argv) {
    int udp = argc > 1 && !strcmp(argv[1], "udp"), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int sock = socket(AF_INET, udp ? SOCK_DGRAM : SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (sock < 0 || bind(sock, (struct sockaddr *)&address, size)) fail("bind");
    if (!udp) setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* connections inherit it */
    getsockname(sock, (struct sockaddr *)&address, &size);
    if (udp) {
        printf("127.0.0.1 %d\n", ntohs(address.sin_port));
        fflush(stdout);
        echo_datagrams(sock);
    }
    if (listen(sock, BACKLOG)) fail("listen");
    printf("127.0.0.1 %d\n", ntohs(address.sin_port));
    fflush(stdout);
    echo_lines(sock);
}
