FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY cmd cmd
COPY internal internal
COPY migrations migrations
# Of git's files those that say which commit this is, where there are any.
COPY go.mod .gi[t] /git/
ARG VERSION=
ARG COMMIT=
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    set -- $(VERSION="$VERSION" COMMIT="$COMMIT" cmd/user-management/version.sh /git) && \
    CGO_ENABLED=0 go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X github.com/viralpilot/user-management/internal/app.version=$1 -X github.com/viralpilot/user-management/internal/app.commit=$2" \
    -o /user-management ./cmd/user-management

FROM gcr.io/distroless/static-debian12:nonroot
ARG VERSION=
ARG COMMIT=
LABEL org.opencontainers.image.title="Viral Pilot user management" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT"
COPY --from=build /user-management /user-management
EXPOSE 8001
# Whether it lives: an outage of the database must not become a restart of every replica. The interval is short since
# whoever waits for a healthy container waits for its end (--start-interval needs Docker 25).
HEALTHCHECK --interval=2s --timeout=5s --retries=5 --start-period=30s CMD ["/user-management", "health", "--live"]
ENTRYPOINT ["/user-management"]
