"""Show what the roles of a data set's splits share, and which of their images are most alike."""

from jointdiff.logs import to_rule_log
from jointdiff.report.audit import draw_audit


def main(rule):
    draw_audit(
        rule.input.store,
        rule.input.splits,
        table=rule.output.table,
        page=rule.output.page,
        picture=rule.output.picture,
    )


if __name__ == "__main__":
    with to_rule_log(snakemake):
        main(snakemake)
