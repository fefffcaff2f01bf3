/* slow_link.h - a proxy that makes loopback as slow as a cable: every byte leaves `delay_us` after it came and no sooner than
 * `mbit` lets it, each direction by itself. It takes one connection and has a thread of its own. TCP sees two short links: it
 * starts and slows down as on loopback, only the time is the cable's. */
#ifndef MOESAIC_CLI_SLOW_LINK_H
#define MOESAIC_CLI_SLOW_LINK_H

#include <stdint.h>

#include "common/base/err.h"

struct slow_link;

struct slow_link_cfg {
    uint32_t delay_us; /* of one way */
    uint32_t mbit;     /* 10^6 bits per second, each way; 0: no limit */
};

/* From a port of its own on 127.0.0.1, which goes to *port, to `to_port` there. ERR_IO, ERR_EXHAUSTED. */
enum err_code slow_link_open(const struct slow_link_cfg *cfg, unsigned to_port,
                             struct slow_link **out, unsigned *port, struct err *why);
void slow_link_close(struct slow_link *l); /* cuts the connection; NULL: nothing */

#endif
