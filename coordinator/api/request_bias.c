/* logit_bias: {"token id": number}, as OpenAI has it. */
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "coordinator/api/request.h"

#define MOST_BIAS 100.0 /* OpenAI's bound: from there on a token is forced or banned */

/* Decimal digits alone, no leading zero: one id has one spelling. */
static bool parse_id(const char *key, uint32_t vocab, int32_t *out)
{
    char *end;
    if (key[0] < '0' || key[0] > '9' || (key[0] == '0' && key[1] != '\0') || strlen(key) > 10)
        return false;
    unsigned long long id = strtoull(key, &end, 10);
    if (*end != '\0' || id >= vocab) return false;
    *out = (int32_t)id;
    return true;
}

int request_logit_bias(const json_t *given, uint32_t vocab, struct logit_bias **out, uint32_t *n,
                       struct fault *why)
{
    static const char param[] = "logit_bias";
    if (given == NULL) return 0;
    if (!json_is_object(given))
        return fault_set(why, 400, "invalid_type", param,
                         "logit_bias must be an object from token ids to numbers");
    size_t count = json_object_size(given);
    if (count > LIMIT_LOGIT_BIAS)
        return fault_set(why, 400, "invalid_value", param,
                         "logit_bias has %zu entries; at most %u are allowed", count,
                         LIMIT_LOGIT_BIAS);
    if (count == 0) return 0;
    struct logit_bias *list = mem_zalloc_array(count, sizeof *list);
    if (list == NULL) return fault_set(why, 503, "overloaded", NULL, "no memory for the request");
    *out = list; /* the request's from here on */
    const char *key;
    json_t *value, *object = (json_t *)(uintptr_t)given; /* the iterator wants it so */
    json_object_foreach(object, key, value)
    {
        if (!parse_id(key, vocab, &list[*n].id))
            return fault_set(why, 400, "invalid_value", param,
                             "logit_bias has the key '%.32s'; keys are token ids, 0 to %u", key,
                             vocab - 1);
        if (!json_is_number(value))
            return fault_set(why, 400, "invalid_type", param, "logit_bias[%s] must be a number",
                             key);
        list[*n].bias = json_number_value(value);
        if (!(list[*n].bias >= -MOST_BIAS && list[*n].bias <= MOST_BIAS))
            return fault_set(why, 400, "invalid_value", param,
                             "logit_bias[%s] is %g; it must be from %g to %g", key, list[*n].bias,
                             -MOST_BIAS, MOST_BIAS);
        (*n)++;
    }
    return 0;
}
