/* rope_params.h - the rotary embedding's part of config.json. One thread. */
#ifndef MOESAIC_MODELFILE_ROPE_PARAMS_H
#define MOESAIC_MODELFILE_ROPE_PARAMS_H

#include "common/modelfile/hparams.h"
#include "common/modelfile/json_fields.h"

/* Read rope_theta with either `rope_scaling` (older files) or `rope_parameters` (newer ones). Faults stick
 * in `config`. Every key inside must belong to the named rope type: others are refused by name.
 * The share of a head that is rotated, from `partial_rotary_factor` here or there; 1 when absent. */
double rope_params_read(struct json_fields *config, uint32_t ctx_max, double default_theta,
                        struct rope_params *out);

#endif
