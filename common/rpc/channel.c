/* Channels: credentials, target names, and the measured arguments of each lane (reference: transport, 10). */
#include <arpa/inet.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/check.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/rpc/internal.h"

grpc_channel_credentials *rpc_channel_credentials(void)
{
    return grpc_insecure_credentials_create();
}

grpc_server_credentials *rpc_server_credentials(void)
{
    return grpc_insecure_server_credentials_create();
}

char *rpc_target_uri(const char *target)
{
    struct buf b = {0};
    const char *colon = strrchr(target, ':');
    char host[INET_ADDRSTRLEN];
    struct in_addr ignored;
    size_t n = colon == NULL ? sizeof host : (size_t)(colon - target);
    if (strncmp(target, "unix:", 5) == 0) {
        n = sizeof host;
    } else if (target[0] == '[') {
        buf_puts(&b, "ipv6:");
    } else if (n < sizeof host) {
        memcpy(host, target, n);
        host[n] = '\0';
        /* Without the scheme a numeric host would still start gRPC's resolver thread. */
        if (inet_pton(AF_INET, host, &ignored) == 1) buf_puts(&b, "ipv4:");
    }
    buf_puts(&b, target);
    return buf_take(&b, NULL);
}

static grpc_arg int_arg(const char *key, int value)
{
    /* gRPC declares the key without const and does not write to it. */
    return (grpc_arg){
        .type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value.integer = value};
}

grpc_channel *rpc_channel_open(const char *target, enum rpc_lane lane, struct err *why)
{
    bool bulk = lane == RPC_LANE_BULK;
    grpc_arg args[] = {
        int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, LIMIT_FRAME_BYTES),
        int_arg(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, LIMIT_FRAME_BYTES),
        int_arg(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, bulk ? 4 << 20 : 16 << 20),
        int_arg(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, bulk ? 64 << 10 : 1 << 20),
        int_arg(GRPC_ARG_HTTP2_BDP_PROBE, bulk ? 0 : 1),
        int_arg(GRPC_ARG_KEEPALIVE_TIME_MS, RPC_KEEPALIVE_TIME_MS),
        int_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, RPC_KEEPALIVE_TIMEOUT_MS),
        int_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        int_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        int_arg(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, RPC_BACKOFF_MIN_MS),
        int_arg(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, RPC_CONNECT_TIMEOUT_MS), /* its real meaning */
        int_arg(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, RPC_BACKOFF_MAX_MS),
        int_arg(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS,
                1000),                          /* 30 s by default: too long for a moved node */
        int_arg(GRPC_ARG_ENABLE_HTTP_PROXY, 0), /* else http_proxy in the environment is used */
        int_arg(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),
        int_arg(GRPC_ARG_ENABLE_RETRIES, 0),
        int_arg("moe.lane",
                (int)lane), /* private: channels with equal arguments would share one connection */
    };
    grpc_channel_args list = {.num_args = ARRAY_LEN(args), .args = args};
    char *uri = rpc_target_uri(target);
    if (uri == NULL) {
        err_nomem(why, "rpc target");
        return NULL;
    }
    grpc_channel_credentials *creds = rpc_channel_credentials();
    grpc_channel *ch = grpc_channel_create(uri, creds, &list);
    grpc_channel_credentials_release(creds);
    mem_free(uri);
    if (ch == NULL) err_set(why, ERR_INVALID, "cannot make a channel to %s", target);
    return ch;
}

grpc_server *rpc_server_make(void)
{
    grpc_arg args[] = {
        int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, LIMIT_FRAME_BYTES),
        int_arg(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, LIMIT_FRAME_BYTES),
        int_arg(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16 << 20),
        int_arg(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 1 << 20),
        int_arg(GRPC_ARG_ALLOW_REUSEPORT, 0), /* else two servers silently share one port */
        int_arg(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500),
        int_arg(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0),
        int_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        int_arg(GRPC_ARG_KEEPALIVE_TIME_MS, 5000), /* drops coordinators that are gone */
        int_arg(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, RPC_HANDSHAKE_TIMEOUT_MS),
        int_arg(GRPC_ARG_MAX_CONNECTION_IDLE_MS, RPC_IDLE_MS),
        int_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, RPC_KEEPALIVE_TIMEOUT_MS),
    };
    grpc_channel_args list = {.num_args = ARRAY_LEN(args), .args = args};
    return grpc_server_create(&list, NULL);
}
