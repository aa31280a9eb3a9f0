/* Logs the socket calls a process makes through libc, one line each, to the file COUNT_LOG.
   It stands where mirrord's layer would. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void say(const char *what, int port) {
    const char *path = getenv("COUNT_LOG");
    if (!path) return;
    int file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (file < 0) return;
    dprintf(file, "%s %d\n", what, port);
    close(file);
}

static int port_of(const struct sockaddr *address) {
    if (address && address->sa_family == AF_INET)
        return ntohs(((const struct sockaddr_in *)address)->sin_port);
    return -1;
}

static int port_at(int fd) {
    struct sockaddr_in here;
    socklen_t length = sizeof here;
    return getsockname(fd, (struct sockaddr *)&here, &length) ? -1 : port_of((struct sockaddr *)&here);
}

int socket(int domain, int type, int protocol) {
    int (*real)(int, int, int) = dlsym(RTLD_NEXT, "socket");
    if (domain == AF_INET || domain == AF_INET6) say("socket", 0);
    return real(domain, type, protocol);
}

int bind(int fd, const struct sockaddr *address, socklen_t length) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "bind");
    int result = real(fd, address, length);
    if (result == 0 && port_of(address) >= 0) say("bind", port_at(fd));
    return result;
}

int listen(int fd, int backlog) {
    int (*real)(int, int) = dlsym(RTLD_NEXT, "listen");
    int result = real(fd, backlog);
    if (result == 0) say("listen", port_at(fd));
    return result;
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags) {
    int (*real)(int, struct sockaddr *, socklen_t *, int) = dlsym(RTLD_NEXT, "accept4");
    int result = real(fd, address, length, flags);
    if (result >= 0) say("accept", port_at(result));
    return result;
}

int accept(int fd, struct sockaddr *address, socklen_t *length) {
    int (*real)(int, struct sockaddr *, socklen_t *) = dlsym(RTLD_NEXT, "accept");
    int result = real(fd, address, length);
    if (result >= 0) say("accept", port_at(result));
    return result;
}

int connect(int fd, const struct sockaddr *address, socklen_t length) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    if (port_of(address) >= 0) say("connect", port_of(address));
    return real(fd, address, length);
}
