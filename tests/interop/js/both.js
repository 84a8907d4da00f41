// Records are the same ones over gRPC: with their keys, headers and times. The client has gzip only, and puts headers of one name together.
const assert = require('assert')

const COUNT = 50
const numbers = [...Array(COUNT).keys()]
const value = (i) => `value ${i} `.repeat(20)

module.exports = async function both({ kafka, check, newTopic, topic, produce, quipu, readAll, compressions }) {
  const overGrpc = (name) =>
    quipu('', 'consume', name, '--format', 'json').trim().split('\n').map(JSON.parse)
      .map(({ key, value, headers, timestamp }) => ({ key, value, headers: headers.map((it) => `${it.key}=${it.value}`).sort(), timestamp }))
  const pairs = ['a=1', 'a=2', 'b=']

  await check('written here, read over gRPC', async () => {
    for (const compression of Object.values(compressions)) {
      const name = await newTopic('to-grpc')
      const headers = { a: ['1', '2'], b: '' }
      await produce(name, numbers.map((i) => ({ key: `k${i}`, value: value(i), headers, timestamp: `${1700000000000 + i}` })), { compression })
      const wanted = numbers.map((i) => ({ key: `k${i}`, value: value(i), headers: pairs, timestamp: 1700000000000 + i }))
      assert.deepStrictEqual(overGrpc(name), wanted)
    }
  })
  await check('written over gRPC, read here', async () => {
    for (const codec of Object.keys(compressions)) {
      const name = await newTopic('from-grpc')
      const headers = ['a=1', 'b=', 'a=2'].flatMap((pair) => ['--header', pair])
      quipu(numbers.map((i) => `k${i}:${value(i)}\n`).join(''), 'produce', name, '--key-separator', ':', '--compression', codec, ...headers)
      const found = (await readAll(kafka, topic('g'), name, COUNT)).map((message) => ({
        key: `${message.key}`,
        value: `${message.value}`,
        headers: Object.entries(message.headers).flatMap(([key, all]) => [all].flat().map((one) => `${key}=${one}`)).sort(),
        timestamp: Number(message.timestamp),
      }))
      assert.deepStrictEqual(found, overGrpc(name))
      assert.deepStrictEqual(found.map(({ timestamp, ...rest }) => rest), numbers.map((i) => ({ key: `k${i}`, value: value(i), headers: pairs })))
    }
  })
}
