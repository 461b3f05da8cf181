#!/usr/bin/env python3
"""Applies retention policies, as the documentation of the module `retention` defines them.

Reads a JSON array of cases from standard input and writes an array of results. It asks about each snapshot and each rule
whether the rule keeps the snapshot, so it shares no algorithm with brackfs. It is slow, but easy to compare with the text.
"""

import calendar
import datetime
import json
import re
import sys
import zoneinfo

HOUR = datetime.timedelta(hours=1)
PERIODS = {"hourly": "%Y-%m-%d %H %z", "daily": "%Y-%m-%d", "weekly": "%G-W%V", "monthly": "%Y-%m", "yearly": "%Y"}


def period(kind, snapshot):
    if kind not in snapshot["periods"]:
        time = snapshot["date"]
        quarter = f"{time.year} Q{(time.month + 2) // 3}"
        snapshot["periods"][kind] = quarter if kind == "quarterly" else time.strftime(PERIODS[kind])
    return snapshot["periods"][kind]


def less(time, age):
    years, months, weeks, days, hours = (int((re.findall(rf"(\d+){unit}", age) or [0])[0]) for unit in "ymwdh")
    try:
        if years or months or weeks or days:
            year, month = divmod(12 * (time.year - years) + time.month - 1 - months, 12)
            day = min(time.day, calendar.monthrange(year, month + 1)[1])
            time = time.replace(year=year, month=month + 1, day=day) - datetime.timedelta(days=7 * weeks + days)
            time = time.replace(fold=0)
        return time.astimezone(datetime.UTC) - hours * HOUR
    except (ValueError, OverflowError):
        return datetime.datetime.min.replace(tzinfo=datetime.UTC)


def reason(rule, argument, snapshot, counted):
    """Why the rule keeps the snapshot, if it does."""
    newest, oldest = counted[-1], counted[0]
    kind, _, within = rule.partition(" ")
    if rule == "tag":
        return f"tag {argument}" if argument in snapshot["tags"] else None
    if rule == "last":
        nth = 1 + sum(other["number"] > snapshot["number"] for other in counted)
        return f"last {nth}" if nth <= argument else None
    if rule == "within" or within:
        limit = less(newest["date"], argument)
        counted = [other for other in counted if other["utc"] > limit]
        if snapshot not in counted:
            return None
        if rule == "within":
            return f"within {argument}"
    same = [other for other in counted if period(kind, other) == period(kind, snapshot)]
    is_latest = snapshot is max(same, key=lambda other: (other["utc"], other["number"]))
    if within:
        return f"{kind} within {argument}" if is_latest else f"oldest {kind}" if snapshot is oldest else None
    nth = 1 + len({period(kind, other) for other in counted if other["number"] > same[-1]["number"]})
    if is_latest:
        return f"{kind} {nth}" if nth <= argument else None
    is_short = len({period(kind, other) for other in counted}) < argument
    return f"oldest {kind}" if snapshot is oldest and is_short else None


def why_not_counted(snapshot, now):
    if snapshot["state"] != "there":
        return snapshot["state"]
    if snapshot["utc"] is None:
        return "no valid date"
    return "dated in the future" if snapshot["utc"] > now + HOUR else None


def decide(case):
    zone, now = zoneinfo.ZoneInfo(case["zone"]), datetime.datetime.fromtimestamp(case["now"], datetime.UTC)
    rules = [(rule, float("inf") if n == "unlimited" else n) for rule, n in case["rules"]]
    tags = [tag for rule, tag in rules if rule == "tag"]
    every = [snapshot for snapshot in case["snapshots"] if snapshot["source"] in case["sources"] or not case["sources"]]
    for snapshot in every:
        snapshot["periods"] = {}
        try:
            snapshot["utc"] = datetime.datetime.strptime(snapshot["time"] + "+0000", "%Y%m%dT%H%M%SZ%z")
            snapshot["date"] = snapshot["utc"].astimezone(zone)
        except ValueError:
            snapshot["utc"] = None

    errors, reasons, large = set(), {}, []
    if not any(rules) or all(argument == 0 for _, argument in rules):
        errors.add("empty")
    if not set(case["sources"]) <= {snapshot["source"] for snapshot in case["snapshots"]}:
        errors.add("no source")
    if (tags or case["by_tags"]) and any(snapshot["tags"] is None for snapshot in every):
        return {"errors": sorted(errors | {"unknown tags"})}
    there = [snapshot for snapshot in every if snapshot["state"] == "there"]
    if not set(tags) <= {tag for snapshot in there for tag in snapshot["tags"] or []}:
        errors.add("no tag")

    group_of = lambda snapshot: (snapshot["source"], case["by_tags"] and frozenset(snapshot["tags"]))
    for group in {group_of(snapshot) for snapshot in every}:
        members = sorted((s for s in every if group_of(s) == group), key=lambda s: s["number"])
        counted = [snapshot for snapshot in members if not why_not_counted(snapshot, now)]
        for snapshot in members:
            if snapshot in counted:
                found = [reason(rule, argument, snapshot, counted) for rule, argument in rules]
            else:
                found = [why_not_counted(snapshot, now)]
            reasons[snapshot["number"]] = [found for found in found if found]
        if counted and not any(reasons[snapshot["number"]] for snapshot in counted):
            errors.add("nothing left")
        for snapshot in counted:
            kept = reasons[snapshot["number"]]
            kept += ["held"] if snapshot["held"] else []
            kept += ["newest"] if snapshot is counted[-1] and not kept else []
    for source in sorted({snapshot["source"] for snapshot in there}):
        own = [reasons[snapshot["number"]] for snapshot in there if snapshot["source"] == source]
        if own.count([]) > len(own) / 2:
            large.append([source, own.count([]), len(own)])
    return {"errors": sorted(errors)} if errors else {"reasons": reasons, "large": large}


print(json.dumps([decide(case) for case in json.load(sys.stdin)]))
