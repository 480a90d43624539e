"""The API by route: rate, errors, duration; and what it leans on."""

from boards.panels import board, heat, lines, log_lines, number, quantiles, rate, rows

HOSTS = 'host=~"$host"'

BOARD = board(
    "arches-api",
    "API",
    "Rate, errors and duration of every route, and what the API leans on.",
    [
        [
            number("Processes", "Server processes that answer Prometheus.", "short",
                   f'sum(up{{job="api_metrics",{HOSTS}}})', bad_below=1),
            number("Requests", "Requests per second, all routes.", "reqps",
                   f"sum(rate(arches_http_requests_total{{{HOSTS}}}[$__rate_interval]))"),
            number("In flight", "Requests that are being answered now.", "short",
                   f"sum(arches_http_in_flight{{{HOSTS}}})"),
            number("Draining", "Processes that are going away and take no new requests.", "short",
                   f"sum(arches_draining{{{HOSTS}}})"),
        ],
        [
            rate("Requests by route", "Requests per second of each route.", "reqps",
                 (f"arches_http_requests_total{{{HOSTS}}}", "{{method}} {{route}}"), by="method, route"),
            rate("Answers by status", "Answers per second of each status.", "reqps",
                 (f"arches_http_requests_total{{{HOSTS}}}", "{{status}}"), by="status"),
        ],
        [
            quantiles("Duration by route", "Time to answer, by route.", "s",
                      f"arches_http_request_seconds_bucket{{{HOSTS}}}", by="route"),
            heat("Duration", "How many requests took how long.", "s",
                 f"arches_http_request_seconds_bucket{{{HOSTS}}}"),
        ],
        [
            lines("Database connections", "The API's own connections, how many are idle, and who waits.", "short",
                  (f"sum by (host) (arches_database_connections{{{HOSTS}}})", "{{host}} open"),
                  (f"sum by (host) (arches_database_connections_idle{{{HOSTS}}})", "{{host}} idle"),
                  (f"sum by (host) (arches_database_waiting{{{HOSTS}}})", "{{host}} waiting")),
            lines("Trouble with what it leans on", "Retried and lost transactions, and failed calls to Redis.", "cps",
                  (f"sum(rate(arches_database_retries_total{{{HOSTS}}}[$__rate_interval]))", "transactions retried"),
                  (f"sum(rate(arches_database_unavailable_total{{{HOSTS}}}[$__rate_interval]))", "transactions lost"),
                  (f"sum(rate(arches_redis_errors_total{{{HOSTS}}}[$__rate_interval]))", "Redis calls failed")),
            lines("Requests refused by a limit", "Requests per second that a rate limit refused.", "reqps",
                  (f"sum by (limit) (rate(arches_rate_limited_total{{{HOSTS}}}[$__rate_interval])) or vector(0)",
                   "{{limit}}")),
        ],
        [
            rate("Embeddings", "Embedding calls per second by outcome.", "cps",
                 (f"arches_embeddings_total{{{HOSTS}}}", "{{purpose}} {{outcome}}"), by="purpose, outcome"),
            rate("Searches", "Searches per second by mode.", "reqps",
                 (f"arches_searches_total{{{HOSTS}}}", "{{mode}}"), by="mode"),
            quantiles("Embedder", "Time of a request to the embedder, waiting included.", "s",
                      f"embedder_request_seconds_bucket{{{HOSTS}}}"),
            lines("Embedding backlog", "Artifacts that wait for an embedding.", "short",
                  (f"max(arches_embedding_backlog{{{HOSTS}}})", "waiting")),
        ],
        [
            rate("Processor time", "Seconds of processor time per second of each host's API processes.", "short",
                 (f'process_cpu_seconds_total{{job="api_metrics",{HOSTS}}}', "{{host}}"), by="host"),
            lines("Memory", "Resident memory of each server process.", "bytes",
                  (f'process_resident_memory_bytes{{job=~"api_metrics|embedder",{HOSTS}}}', "{{job}} {{instance}}")),
            rows("Releases", "Which release each process runs.", "short",
                 f"sum by (host, release) (arches_build_info{{{HOSTS}}})"),
        ],
        [log_lines("Log", "What the API processes wrote.", f'{{{HOSTS}, unit=~"api.*"}}')],
    ],
    hosts="api_metrics",
)  # fmt: skip
