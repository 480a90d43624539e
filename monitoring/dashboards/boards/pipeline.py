"""The monitoring itself: does it lose anything, and does it keep up?"""

from boards.panels import board, lines, log_lines, number, quantiles, rate

BOARD = board(
    "arches-pipeline",
    "Monitoring",
    "Prometheus, Alertmanager, the collectors, Loki and Jaeger: do they lose anything, do they keep up?",
    [
        [
            number("Series", "Series that Prometheus holds in memory.", "short", "sum(prometheus_tsdb_head_series)"),
            number("Rules failing", "Evaluations of rules that failed in the last five minutes.", "short",
                   "sum(increase(prometheus_rule_evaluation_failures_total[5m]))", bad_from=1),
            number("Notifications failing", "Notifications that failed in the last five minutes.", "short",
                   "sum(increase(alertmanager_notifications_failed_total[5m]))", bad_from=1),
            number("Lines refused", "Lines that Loki refused in the last five minutes.", "short",
                   "sum(increase(loki_discarded_samples_total[5m])) or vector(0)", bad_from=1),
        ],
        [
            lines("Prometheus: samples", "Samples per second by job.", "short",
                  ("sum by (job) (scrape_samples_scraped)", "{{job}}"), stacked=True),
            lines("Prometheus: time of a scrape", "The longest scrape of each job.", "s",
                  ("max by (job) (scrape_duration_seconds)", "{{job}}")),
            rate("Alertmanager: notifications", "Notifications per second by kind of receiver.", "cps",
                 ("alertmanager_notifications_total", "{{integration}}"), by="integration"),
        ],
        [
            rate("Collectors: lines", "Log records per second that each collector has sent.", "cps",
                 ("otelcol_exporter_sent_log_records", "{{host}}"), by="host"),
            lines("Collectors: queue", "Share of each collector's queue that is filled.", "percentunit",
                  ("max by (host, exporter) (otelcol_exporter_queue_size / otelcol_exporter_queue_capacity)",
                   "{{host}} {{exporter}}")),
            lines("Collectors: memory", "Resident memory of each collector.", "bytes",
                  ('max by (host) (otelcol_process_memory_rss{job="collector"})', "{{host}}")),
        ],
        [
            rate("Loki: bytes", "Bytes of log lines per second that Loki takes.", "Bps",
                 ("loki_distributor_bytes_received_total", "{{host}}"), by="host"),
            rate("Loki: lines", "Lines per second that Loki takes.", "cps",
                 ("loki_distributor_lines_received_total", "{{host}}"), by="host"),
            quantiles("Loki: time of a request", "Time that Loki takes to answer.", "s",
                      "loki_request_duration_seconds_bucket"),
            lines("Loki: streams", "Streams in Loki's memory.", "short",
                  ("sum by (host) (loki_ingester_memory_streams)", "{{host}}")),
        ],
        [
            rate("API: spans", "Spans per second by what became of them.", "cps",
                 ("arches_spans_total", "{{outcome}}"), by="outcome"),
            rate("Jaeger: spans", "Spans per second that Jaeger takes.", "cps",
                 ('otelcol_receiver_accepted_spans_total{job="jaeger"}', "{{receiver}}"), by="receiver"),
            rate("Jaeger: requests to its store", "Reads and writes of Jaeger's store per second.", "cps",
                 ("jaeger_storage_requests_total", "{{operation}} {{result}}"), by="operation, result"),
            lines("Memory", "Resident memory of each part.", "bytes",
                  ('process_resident_memory_bytes{job=~"prometheus|alertmanager|loki|blackbox_exporter"}', "{{job}}")),
        ],
        [log_lines("Log", "What the parts of the monitoring wrote.",
                   '{unit=~"(prometheus|arches-loki|arches-jaeger|otel-collector).*"}')],
    ],
)  # fmt: skip
