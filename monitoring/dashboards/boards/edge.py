"""The edge: what clients see, counted from its access log and asked from outside."""

from boards.panels import board, heat, lines, log_lines, number, quantiles, rate

BOARD = board(
    "arches-edge",
    "Edge",
    "What clients see: the objectives are counted here, never by the API.",
    [
        [
            number("Availability, 1 h", "Share of the last hour's requests that were not answered with 5xx.",
                   "percentunit",
                   '1 - (sum(increase(edge_requests_total{code=~"5.."}[1h])) or vector(0)) '
                   "/ (sum(increase(edge_requests_total[1h])) > 0 or vector(1))", bad_below=0.999),
            number("Fast enough, 1 h", "Share of the last hour's requests that took at most 300 ms.", "percentunit",
                   'sum(increase(edge_request_seconds_bucket{le="0.3"}[1h])) '
                   "/ (sum(increase(edge_request_seconds_count[1h])) > 0 or vector(1))", bad_below=0.99),
            number("Answers from outside", "Edges that answer a probe.", "short",
                   'sum(probe_success{job="probe_edge"})', bad_below=1),
            number("Certificate expires in", "Time until the first certificate that the edge shows expires.", "s",
                   'min(probe_ssl_earliest_cert_expiry{job="probe_edge"}) - time()', bad_below=14 * 86400),
        ],
        [
            rate("Requests by status", "Requests per second in the access log, health checks left out.", "reqps",
                 ("edge_requests_total", "{{code}}"), by="code"),
            quantiles("Duration", "Time from a request's first byte to the last byte of its answer.", "s",
                      "edge_request_seconds_bucket"),
            heat("Spread of durations", "How many requests took how long.", "s", "edge_request_seconds_bucket"),
        ],
        [
            lines("Connections", "Client connections of nginx by what they do.", "short",
                  ("sum by (host) (nginx_connections_reading)", "{{host}} reading"),
                  ("sum by (host) (nginx_connections_writing)", "{{host}} writing"),
                  ("sum by (host) (nginx_connections_waiting)", "{{host}} waiting")),
            lines("Connections accepted", "New connections per second, and those that nginx had no room for.", "cps",
                  ("sum by (host) (rate(nginx_connections_accepted[$__rate_interval]))", "{{host}} accepted"),
                  ("sum by (host) (rate(nginx_connections_accepted[$__rate_interval]) "
                   "- rate(nginx_connections_handled[$__rate_interval]))", "{{host}} dropped")),
            rate("Requests that nginx counts", "Requests per second by nginx's own count, health checks included.",
                 "reqps", ("nginx_http_requests_total", "{{host}}"), by="host"),
        ],
        [
            lines("Probes", "1 where a hop of the client path answers.", "short",
                  ("min by (job, instance) (probe_success)", "{{job}} {{instance}}")),
            lines("Time of the probes", "Time that each hop took to answer.", "s",
                  ("max by (job, instance) (probe_duration_seconds)", "{{job}} {{instance}}")),
        ],
        [log_lines("Log", "What nginx wrote, the access log included.", '{unit=~"nginx.*"}')],
    ],
)  # fmt: skip
