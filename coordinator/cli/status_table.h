/* status_table.h - the answer of GET /v1/cluster as a table; shared by status and demo. */
#ifndef MOESAIC_CLI_STATUS_TABLE_H
#define MOESAIC_CLI_STATUS_TABLE_H

#include <jansson.h>
#include <stdbool.h>

bool status_all_ready(const json_t *cluster);
void status_print_nodes(const json_t *cluster);
void status_print_engine(const json_t *cluster);

#endif
