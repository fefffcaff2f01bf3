/* The metrics registry: counting from several threads, and the text that Prometheus reads. */
// links: base
// threads: yes
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/base/metrics.h"

static void *count(void *ctx)
{
    for (int i = 0; i < 20000; i++) {
        metrics_count(ctx, METRIC_PROMPT_TOKENS, 2);
        metrics_add(ctx, METRIC_STREAMS_OPEN, 0.5);
        metrics_observe(ctx, METRIC_TTFT, 0.02);
    }
    return NULL;
}

Test(metrics, nothing_is_lost_between_threads)
{
    struct metrics *m = metrics_open();
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, count, m);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    cr_expect_eq(metrics_value(m, METRIC_PROMPT_TOKENS), 80000);
    cr_expect_eq(metrics_value(m, METRIC_STREAMS_OPEN), 20000);
    cr_expect_eq(metrics_value(m, METRIC_TTFT), 40000);
    metrics_close(m);
}

Test(metrics, text_has_one_header_per_family_and_cumulative_buckets)
{
    struct metrics *m = metrics_open();
    struct buf b = {0};
    metrics_observe(m, METRIC_TTFT, 0.001); /* a bound belongs to its bucket */
    metrics_observe(m, METRIC_TTFT, 0.3);
    metrics_observe(m, METRIC_TTFT, 5000);
    metrics_set(m, METRIC_KV_CACHE_USAGE, 0.25);
    metrics_count(m, METRIC_REQUEST_STOP, 3);
    metrics_put_text(m, &b);
    static const char *const wanted[] = {
        ("# TYPE moesaic_request_total counter\nmoesaic_request_total{finish_reason=\"stop\",status=\"200\"} 3\n"
         "moesaic_request_total{finish_reason=\"length\",status=\"200\"} 0\n"),
        "\nmoesaic_kv_cache_usage_ratio 0.25\n",
        "moesaic_time_to_first_token_seconds_bucket{le=\"0.001\"} 1\n",
        "moesaic_time_to_first_token_seconds_bucket{le=\"0.25\"} 1\n",
        "moesaic_time_to_first_token_seconds_bucket{le=\"0.5\"} 2\n",
        "moesaic_time_to_first_token_seconds_bucket{le=\"640\"} 2\n",
        "moesaic_time_to_first_token_seconds_bucket{le=\"+Inf\"} 3\n",
        "moesaic_time_to_first_token_seconds_sum 5000.301\nmoesaic_time_to_first_token_seconds_count 3\n",
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        cr_expect(strstr(b.data, wanted[i]) != NULL, "%s in %s", wanted[i], b.data);
    /* Each family is declared once: Prometheus refuses the page otherwise. */
    for (const char *p = b.data; (p = strstr(p, "# TYPE ")) != NULL; p++) {
        char line[200];
        snprintf(line, sizeof line, "%.*s ", (int)strcspn(p + 7, " "), p + 7);
        char head[220];
        snprintf(head, sizeof head, "# TYPE %s", line);
        cr_expect_null(strstr(p + 1, head), "%s twice", head);
    }
    buf_free(&b);
    metrics_close(m);
    metrics_count(NULL, METRIC_REQUEST_STOP, 1); /* no registry: nothing happens */
    cr_expect_eq(metrics_value(NULL, METRIC_REQUEST_STOP), 0);
}
