// Charts, drawn by uPlot, each with its figures as a table for those who do not see it or want them exactly.

import { h, fill, number, short, dayLabel, dayName } from './dom.js'

const uPlot = window.uPlot

// most is how many series have a colour of their own; those with the least are summed up.
const most = 7

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim()
const seriesColor = (i, name) => color(name === 'other' ? '--series-other' : `--series-${i + 1}`)

const charts = new Set()
const dark = matchMedia('(prefers-color-scheme: dark)')
dark.addEventListener('change', () => charts.forEach((chart) => chart.draw()))

// Chart is the drawing of one host element. It follows the element's width and the colours of the page.
class Chart {
  constructor(options) {
    this.options = options // (width) => [options, data]
    this.element = h('div', { class: 'chart' })
    this.sizes = new ResizeObserver(() => {
      if (!this.element.isConnected) this.end()
      else if (this.element.clientWidth !== this.width) this.draw()
    })
    this.sizes.observe(this.element)
    charts.add(this)
  }

  draw() {
    this.plot?.destroy()
    this.width = this.element.clientWidth
    if (this.width < 50) return
    const [options, data] = this.options(this.width)
    this.plot = new uPlot({ width: this.width, ...options }, data, this.element)
    this.plot.root.setAttribute('aria-hidden', 'true')
  }

  end() {
    this.plot?.destroy()
    this.sizes.disconnect()
    charts.delete(this)
  }
}

const font = '12px system-ui, sans-serif'

function axes(width, xAxis, yValues = (_, values) => values.map(short)) {
  const line = { stroke: color('--chart-text'), font, grid: { stroke: color('--chart-grid'), width: 1 }, ticks: { show: false } }
  return [
    { ...line, size: 30, gap: 6, ...xAxis, grid: { show: false } },
    { ...line, size: width < 500 ? 42 : 52, gap: 6, values: yValues },
  ]
}

// tooltip follows the pointer with the figures of where it is.
function tooltip(contents) {
  const element = h('div', { class: 'tooltip', hidden: true })
  return {
    hooks: {
      init: [(u) => u.over.append(element)],
      setCursor: [(u) => {
        const i = u.cursor.idx
        const shown = i !== null && i !== undefined && u.cursor.left >= 0
        element.hidden = !shown
        if (!shown) return
        fill(element, contents(i))
        const left = u.cursor.left + 14
        element.style.left = (left + element.offsetWidth > u.over.clientWidth ? Math.max(0, u.cursor.left - 14 - element.offsetWidth) : left) + 'px'
        element.style.top = '0px'
      }],
    },
  }
}

const swatch = (color) => {
  const element = h('span', { class: 'swatch', 'aria-hidden': 'true' })
  element.style.backgroundColor = color
  return element
}

// ranked sums each series up, sorts by that, and makes one of those that have no colour of their own.
export function ranked(series) {
  const sum = (values) => values.reduce((a, b) => a + b, 0)
  const named = series.filter((s) => s.name !== 'other' && sum(s.values) > 0).map((s) => ({ ...s, total: sum(s.values) }))
  named.sort((a, b) => b.total - a.total || (a.name < b.name ? -1 : 1))
  const rest = [...named.splice(most), ...series.filter((s) => s.name === 'other')]
  if (rest.length > 0) {
    const values = rest[0].values.map((_, i) => rest.reduce((sum, s) => sum + s.values[i], 0))
    if (sum(values) > 0) named.push({ name: 'other', values, total: sum(values) })
  }
  return named
}

// dayBars shows what each day had of each series, stacked. It returns the chart with its legend and its table.
export function dayBars({ label, days, series, unit, summed = true }) {
  series = ranked(series)
  // What is drawn last is on top: the highest bars come first, each the sum of its series and all below.
  const stacked = series.map((_, s) => days.map((_, d) => series.slice(0, s + 1).reduce((sum, one) => sum + one.values[d], 0)))
  const order = series.map((_, i) => i).reverse()
  const total = (d) => (series.length ? stacked.at(-1)[d] : 0)

  const chart = new Chart((width) => {
    const each = Math.ceil(days.length / Math.max(2, Math.floor(width / 84)))
    const bars = uPlot.paths.bars({ size: [0.72, 48, 1], radius: 0.12 })
    return [{
      height: 240,
      legend: { show: false },
      padding: [12, 24, 0, 0],
      scales: { x: { time: false, range: [-0.6, days.length - 0.4] }, y: { range: (_, __, max) => [0, Math.max(max * 1.08, 1)] } },
      axes: axes(width, {
        splits: () => days.map((_, d) => d).filter((d) => (days.length - 1 - d) % each === 0),
        values: (_, splits) => splits.map((d) => dayLabel(days[d])),
      }),
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      series: [{}, ...order.map((i) => {
        const own = seriesColor(i, series[i].name)
        return { label: series[i].name, fill: own, stroke: own, width: 0, paths: bars, points: { show: false } }
      })],
      plugins: [tooltip((d) => [
        h('p', { class: 'tooltip-title', text: dayName(days[d]) }),
        h('p', { class: 'tooltip-total', text: `${number(total(d))} ${unit}` }),
        series.length > 1 && h('ul', null, series.filter((s) => s.values[d] > 0).map((s) =>
          h('li', null, swatch(seriesColor(series.indexOf(s), s.name)), h('span', { class: 'tooltip-name', text: s.name }), h('span', { text: number(s.values[d]) })))),
      ])],
    }, [days.map((_, d) => d), ...order.map((i) => stacked[i])]]
  })

  const legend = series.length > 1 && h('ul', { class: 'legend' }, series.map((s, i) => {
    const mark = h('span', { class: 'swatch', 'aria-hidden': 'true', dataset: { series: s.name === 'other' ? 'other' : i + 1 } })
    return h('li', null, mark, h('span', { class: 'legend-name', text: s.name }), h('span', { class: 'legend-total', text: number(s.total) }))
  }))
  return h('figure', { class: 'figure', 'aria-label': label }, chart.element, legend,
    table(label, ['Day', ...series.map((s) => s.name), summed && series.length > 1 && 'all'].filter(Boolean),
      days.map((day, d) => [day, ...series.map((s) => s.values[d]), summed && series.length > 1 && total(d)].filter((cell) => cell !== false))))
}

// levels shows how a value went over time, in steps. points are [instant, value], the oldest first.
export function levels({ label, points, until }) {
  const at = points.map(([instant]) => new Date(instant).getTime() / 1000)
  const values = points.map(([, value]) => value)
  if (until && points.length) { // it is still what it was last
    at.push(Math.max(until / 1000, at.at(-1)))
    values.push(values.at(-1))
  }
  const day = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short' })
  const hour = new Intl.DateTimeFormat('en-GB', { day: 'numeric', hour: '2-digit', minute: '2-digit' })
  const when = new Intl.DateTimeFormat('en-GB', { weekday: 'short', day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit' })
  const chart = new Chart((width) => [{
    height: 220,
    legend: { show: false },
    padding: [12, 24, 0, 0],
    scales: { x: { time: true }, y: { range: (_, __, max) => [0, Math.max(max * 1.08, 1)] } },
    axes: axes(width, { space: 80, values: (_, splits, __, ___, step) => splits.map((at) => (step < 86_400 ? hour : day).format(new Date(at * 1000))) }),
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 7, fill: color('--series-1') } },
    series: [{}, {
      label, stroke: color('--series-1'), width: 2, fill: color('--chart-area'), paths: uPlot.paths.stepped({ align: 1 }), points: { show: false },
    }],
    plugins: [tooltip((i) => [
      h('p', { class: 'tooltip-title', text: when.format(new Date(at[i] * 1000)) }),
      h('p', { class: 'tooltip-total', text: number(values[i]) + ' tokens' }),
    ])],
  }, [at, values]])
  return h('figure', { class: 'figure', 'aria-label': label }, chart.element,
    table(label, ['Time', 'Balance'], points.map(([instant, value]) => [instant, value])))
}

// table makes its rows when it is opened first.
function table(caption, head, rows) {
  const details = h('details', { class: 'figures' }, h('summary', { text: 'The figures as a table' }))
  details.addEventListener('toggle', () => {
    if (!details.open || details.querySelector('table')) return
    const cell = (value) => typeof value === 'number' ? h('td', { class: 'number', text: number(value) }) : h('th', { scope: 'row', text: value })
    details.append(h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Table: ' + caption },
      h('table', null, h('caption', { class: 'hidden', text: caption }),
        h('thead', null, h('tr', null, head.map((text, i) => h('th', { scope: 'col', class: i > 0 && 'number', text })))),
        h('tbody', null, rows.map((row) => h('tr', null, row.map(cell)))))))
  })
  return details
}
