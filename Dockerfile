FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY cmd cmd
COPY internal internal
COPY migrations migrations
ARG VERSION=dev
ARG COMMIT=unknown
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X github.com/viralpilot/user-management/internal/app.version=$VERSION -X github.com/viralpilot/user-management/internal/app.commit=$COMMIT" \
    -o /user-management ./cmd/user-management

FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /user-management /user-management
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/user-management", "health"]
ENTRYPOINT ["/user-management"]
