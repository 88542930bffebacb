/* The smallest server that answers: one connection at a time, closed after its answer. Linked statically. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **words) {
    int on = 1, server = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(words[count - 1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(server, (struct sockaddr *)&at, sizeof at) || listen(server, 128)) {
        perror("tiny");
        return 1;
    }
    for (;;) {
        char request[65536], answer[4096], name[256] = "";
        size_t length = 0;
        ssize_t size;
        int client = accept(server, NULL, NULL);
        while (length < sizeof request - 1 && (size = read(client, request + length, sizeof request - 1 - length)) > 0) {
            length += size;
            request[length] = 0;
            if (strstr(request, "\r\n\r\n")) break;
        }
        request[length] = 0;
        sscanf(request, "GET /shop/hello/%255[^ ?]", name);
        size = snprintf(answer, sizeof answer,
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
                        "Content-Length: %zu\r\n\r\n{\"hello\":\"%s\"}",
                        strlen(name) + 12, name);
        if (write(client, answer, size) < 0) perror("tiny");
        close(client);
    }
}
