"""The body of a blob's answer: as it arrives, counted, at most as long as announced, and not too slow."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp

from mirror.oci.errors import UpstreamFailed, UpstreamInvalid, UpstreamTimeout
from mirror.upstream.pacing import Pace, Rate, TooSlow
from mirror.upstream.report import FAILURES, Reporter, UpstreamMetrics


class Body:
    """A ``BlobSource``. length: bytes to come, None when nobody said. limit: of the whole, in bytes."""

    def __init__(
        self,
        report: Reporter,
        metrics: UpstreamMetrics,
        response: aiohttp.ClientResponse,
        of: str,
        *,
        offset: int,
        size: int | None,
        length: int | None,
        limit: int,
        anonymous: bool,
        pace: Pace,
        rate: Rate,
    ) -> None:
        self.offset = offset
        self.size = size
        self.anonymous = anonymous
        self._report = report
        self._metrics = metrics
        self._response = response
        self._of = of
        self._length = length
        self._limit = limit
        self._pace = pace
        self._rate = rate

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the body as it arrives; never more than was announced, nor more than the limit.

        Raises: UpstreamFailed when it ends short, UpstreamTimeout when nothing comes for the time limit or less than
        the minimum rate, UpstreamInvalid when it is too long.
        """
        host = self._response.url.host or ""
        most = self._limit - self.offset if self._length is None else self._length
        received = 0
        try:
            async for chunk in self._response.content.iter_any():
                self._pace.pause()  # what we do with it is not the source's time
                received += len(chunk)
                self._metrics.fetched(self._report.label, len(chunk))
                if received > most:
                    said = f"the limit of {self._limit} bytes" if self._length is None else "announced"
                    raise self._report.failure(
                        UpstreamInvalid, f"sent a body longer than {said}", of=self._of, host=host
                    )
                await self._rate.take(len(chunk))
                yield chunk
                self._pace.resume()
                self._pace.check(received)
        except (TooSlow, *FAILURES) as error:
            if received == self._length:
                return  # all of it is here, however it ended
            if isinstance(error, TooSlow):
                raise self._report.failure(
                    UpstreamTimeout, f"sends too slowly ({error})", of=self._of, advice="try again", host=host
                ) from error
            raise self._report.translated(error, self._of, host=host, body=True) from error
        if self._length is not None and received < self._length:
            # A body that ends with its connection ends silently.
            raise self._report.failure(
                UpstreamFailed,
                f"ended the body after {received} of {self._length} bytes",
                of=self._of,
                advice="try again",
                host=host,
            )
