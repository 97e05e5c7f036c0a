"""A page in a real Chromium, and what the tests of pages share."""

import json

import torch

METHODS = {
    "plain": None,
    "ring": ("ring", {"size": 0.1, "scheme": "windows"}),
    "puppet": ("puppet", {"size": 0.3}),
    "pde": ("pde", {"num_steps": 3}),
    "condconv": ("condconv", {"num_experts": 2}),
    "involution": ("involution", {"group_channels": 4}),
}
COUNT = 50


class Opened:
    """A page in a tab; collects what went wrong and what was asked for."""

    def __init__(self, tab, path):
        self.tab, self.wrong, self.asked = tab, [], []
        tab.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        tab.on("request", lambda request: self.asked.append(request.url))
        self.path = path

    def open(self, state=""):
        self.tab.goto("about:blank")
        self.tab.goto(f"file://{self.path}#{state}")
        self.wait()
        return self

    def wait(self):
        self.tab.wait_for_selector("html[data-ready=yes], html[data-ready=failed]", state="attached", timeout=60_000)

    def address(self, *parts):
        """The state in the address, once it has all these parts."""
        hash = self.tab.wait_for_function(
            "(parts) => parts.every((part) => location.hash.slice(1).split('&').includes(part)) && location.hash.slice(1)",
            arg=list(parts),
        )
        return hash.json_value()

    def probabilities(self, side):
        return torch.tensor(json.loads(self.tab.get_attribute(f"#{side}-classes", "data-probabilities")))

    def slide(self, name, value):
        self.tab.locator(f"#{name}").evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", str(value)
        )
        self.wait()
