"""The kinds of panels that all dashboards are made of, and the board that holds them.

A query is an expression and a legend. `$host` in an expression is the dashboard's choice of hosts; labels are those of
docs/monitoring.md.
"""

from collections.abc import Sequence
from string import ascii_uppercase

from grafana_foundation_sdk.builders import common, heatmap, logs, loki, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

# Names of the data sources that the role grafana provisions.
PROMETHEUS = model.DataSourceRef(type_val="prometheus", uid="prometheus")
LOKI = model.DataSourceRef(type_val="loki", uid="loki")

PANEL_HEIGHT = 8
NUMBER_HEIGHT = 4
BOARD_WIDTH = 24

type Query = tuple[str, str]
type Panel = timeseries.Panel | stat.Panel | heatmap.Panel | table.Panel | logs.Panel


def _dress[P: (timeseries.Panel, stat.Panel, heatmap.Panel, table.Panel)](
    panel: P, title: str, description: str, unit: str
) -> P:
    """What every panel of numbers has."""
    return panel.title(title).description(description).unit(unit).datasource(PROMETHEUS)


def lines(title: str, description: str, unit: str, *queries: Query, stacked: bool = False) -> timeseries.Panel:
    """Values over time; `stacked` where their sum means something."""
    legend = common.VizLegendOptions().show_legend(True)
    legend = legend.display_mode(common_model.LegendDisplayMode.LIST).placement(common_model.LegendPlacement.BOTTOM)
    panel = _dress(timeseries.Panel(), title, description, unit).legend(legend).min(0)
    panel = panel.tooltip(common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI))
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL)).fill_opacity(30)
    for letter, (expression, name) in zip(ascii_uppercase, queries, strict=False):
        panel = panel.with_target(prometheus.Dataquery().ref_id(letter).expr(expression).legend_format(name).range())
    return panel


def rate(title: str, description: str, unit: str, *counters: Query, by: str) -> timeseries.Panel:
    """Counters as values per second, summed by labels such as `host` or `host, code`."""
    queries = [(f"sum by ({by}) (rate({counter}[$__rate_interval]))", name) for counter, name in counters]
    return lines(title, description, unit, *queries)


def quantiles(title: str, description: str, unit: str, histogram: str, by: str = "") -> timeseries.Panel:
    """Median, 95th and 99th percentile of a histogram (its `_bucket`), for each value of one label if one is named."""
    label = f", {by}" if by else ""
    legend = f"{{{{{by}}}}} " if by else ""
    queries = [
        (f"histogram_quantile({share}, sum by (le{label}) (rate({histogram}[$__rate_interval])))", f"{legend}p{name}")
        for share, name in ((0.5, "50"), (0.95, "95"), (0.99, "99"))
    ]
    return lines(title, description, unit, *queries)


def heat(title: str, description: str, unit: str, histogram: str) -> heatmap.Panel:
    """How a histogram's observations are spread over time."""
    query = prometheus.Dataquery().ref_id("A").expr(f"sum by (le) (increase({histogram}[$__rate_interval]))")
    query = query.format(PromQueryFormat.HEATMAP).legend_format("{{le}}").range()
    panel = _dress(heatmap.Panel(), title, description, unit).calculate(False)
    return panel.y_axis(heatmap.YAxisConfig().unit(unit)).with_target(query)


def number(
    title: str, description: str, unit: str, expression: str, legend: str = "", bad_from: float | None = None,
    bad_below: float | None = None,
) -> stat.Panel:  # fmt: skip
    """The value now; red from a bound upwards, or below one."""
    panel = _dress(stat.Panel(), title, description, unit).graph_mode(common_model.BigValueGraphMode.NONE)
    steps = [model.Threshold(value=None, color="green")]
    if bad_from is not None:
        steps.append(model.Threshold(value=bad_from, color="red"))
    if bad_below is not None:
        steps = [model.Threshold(value=None, color="red"), model.Threshold(value=bad_below, color="green")]
    panel = panel.thresholds(builder.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
    return panel.with_target(prometheus.Dataquery().ref_id("A").expr(expression).legend_format(legend).instant())


def rows(title: str, description: str, unit: str, expression: str) -> table.Panel:
    """A line for each series now: its labels and its value."""
    query = prometheus.Dataquery().ref_id("A").expr(expression).format(PromQueryFormat.TABLE).instant()
    hide = model.DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True}})
    return (
        _dress(table.Panel(), title, description, unit).show_header(True).with_target(query).with_transformation(hide)
    )


def log_lines(title: str, description: str, selector: str) -> logs.Panel:
    """Lines of Loki."""
    panel = logs.Panel().title(title).description(description).unit("string").datasource(LOKI)
    panel = panel.show_time(True).wrap_log_message(True).enable_log_details(True)
    return panel.with_target(loki.Dataquery().ref_id("A").expr(selector).max_lines(200).range(True))


def log_rate(title: str, description: str, selector: str, by: str) -> timeseries.Panel:
    """Lines per second of Loki, by labels."""
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    query = loki.Dataquery().ref_id("A").expr(f"sum by ({by}) (rate({selector}[1m]))").legend_format(legend).range(True)
    panel = timeseries.Panel().title(title).description(description).unit("cps").datasource(LOKI).min(0)
    panel = panel.legend(common.VizLegendOptions().show_legend(True))
    return panel.with_target(query)


def hosts_of(job: str) -> builder.QueryVariable:
    """The variable `host`: the hosts that a job measures, all of them unless some are chosen."""
    variable = builder.QueryVariable("host").label("host").datasource(PROMETHEUS)
    variable = variable.query(f'label_values(up{{job="{job}"}}, host)').include_all(True).all_value(".+").multi(True)
    every = model.VariableOption(text="All", value="$__all")
    return variable.current(every).refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)


def board(
    uid: str, title: str, description: str, panels: Sequence[Sequence[Panel]], hosts: str = ""
) -> builder.Dashboard:
    """A dashboard of rows of panels; `hosts` is the job whose hosts can be chosen, if that is useful."""
    made = builder.Dashboard(title).uid(uid).description(description).tags(["arches"]).readonly()
    made = made.time("now-1h", "now").refresh("30s").timezone("browser").tooltip(model.DashboardCursorSync.CROSSHAIR)
    made = made.link(builder.DashboardLink("arches").type(model.DashboardLinkType.DASHBOARDS).tags(["arches"]))
    made = made.annotation(releases())
    if hosts:
        made = made.with_variable(hosts_of(hosts))
    for row in panels:
        height = NUMBER_HEIGHT if all(isinstance(panel, stat.Panel) for panel in row) else PANEL_HEIGHT
        for panel in row:
            made = made.with_panel(panel.span(BOARD_WIDTH // len(row)).height(height))
    return made


def releases() -> builder.AnnotationQuery:
    """A mark wherever an API process of another release was first seen."""
    expression = "count by (release) (arches_build_info) unless count by (release) (arches_build_info offset 1m)"
    query = builder.AnnotationQuery().name("releases").datasource(PROMETHEUS).enable(True)
    return query.expr(expression).icon_color("blue")
