"""Streamed completions that run by themselves to their one end, each in a thread: with the official OpenAI client where asked."""
import functools
import json
import threading
import time

from cluster import DEMO, Stream

try:
    import openai
except ImportError:  # the tests' environment has it (MOESAIC_REQUIRE_OPENAI)
    openai = None


@functools.cache
def official_client():
    """One for all, as making one takes longer than a short answer; each request has a connection of its own."""
    return openai.OpenAI(base_url="http://127.0.0.1", api_key="none", max_retries=0, default_headers={"Connection": "close"})


class Asked(threading.Thread):
    """One completion. `tokens` and `logprobs` grow; at the end `done` is true, or `error` says how it ended."""

    def __init__(self, url, body, official=False, patience=90):
        super().__init__(daemon=True)
        self.url, self.body, self.official, self.patience = url, {"ignore_eos": True, "return_token_ids": True, "logprobs": 3, **body}, official, patience
        self.tokens, self.logprobs, self.times = [], [], []
        self.done, self.error, self.failure = False, None, None
        self.http_status, self.retry_after = 200, None
        self.start()

    def take(self, choice):
        self.tokens += choice.get("token_ids") or []
        self.times += [time.monotonic()] * len(choice.get("token_ids") or [])
        l = choice.get("logprobs") or {}
        self.logprobs += [[t, p, sorted(top.items())] for t, p, top in zip(l.get("tokens", []), l.get("token_logprobs", []), l.get("top_logprobs", []))]
        if choice.get("finish_reason"):
            self.done = True

    def run(self):
        try:
            (self.run_official if self.official else self.run_raw)()
        except Exception as e:  # noqa: BLE001 - raised by ended()
            self.failure = e

    def run_raw(self):
        s = Stream(self.url, self.body, timeout=self.patience)
        try:
            if s.response.status != 200:
                self.error = json.loads(s.response.read())["error"]
                self.http_status, self.retry_after = s.response.status, s.response.getheader("retry-after")
                return
            seen = 0
            while not s.done and s.error is None and len(s.read(seen + 1).events) > seen:
                for e in s.events[seen:]:
                    for choice in e["choices"]:
                        self.take(choice)
                seen = len(s.events)
            if s.error is not None:
                self.error = s.error
            elif not s.done:
                raise AssertionError("a stream ended without its end")
        finally:
            s.close()

    def run_official(self):
        known = {"prompt", "max_tokens", "temperature", "top_p", "seed", "logprobs"}
        extra = {k: v for k, v in self.body.items() if k not in known}
        client = official_client().with_options(base_url=self.url + "/v1", timeout=self.patience)
        try:
            for event in client.completions.create(model=DEMO.name, stream=True, extra_body=extra, **{k: v for k, v in self.body.items() if k in known}):
                for choice in event.model_dump()["choices"]:
                    self.take(choice)
        except openai.APIStatusError as e:
            self.error, self.http_status, self.retry_after = e.body, e.status_code, e.response.headers.get("retry-after")
        except openai.APIConnectionError:
            raise  # also a timeout: nothing may hang
        except openai.APIError as e:  # an event of the stream
            self.error = e.body

    def ended(self):
        """Waits for the end; raises if there was none, or two."""
        self.join(self.patience)
        if self.failure is not None:
            raise AssertionError(f"{'official' if self.official else 'raw'} client: {self.failure!r} after {len(self.tokens)} tokens")
        assert not self.is_alive(), f"a stream hangs after {len(self.tokens)} tokens"
        assert self.done != (self.error is not None), f"done {self.done}, error {self.error}: there is exactly one end"
        return self

    def answer(self):
        """Tokens and logprobs of a complete answer, to be compared."""
        self.ended()
        assert self.error is None, self.error
        assert len(self.tokens) == len(self.logprobs) == self.body["max_tokens"], (len(self.tokens), len(self.logprobs))
        return json.dumps([self.tokens, self.logprobs])
