// A client at work for as long as its standard input is open, while others kill nodes.
const EVERY = 5
const pause = (time) => new Promise((resolve) => setTimeout(resolve, time))

// One record after the other: the client numbers a record anew that is sent while another's fate is not known, and where it gives up
// on one, it gives the next the same number.
async function produce(kafka, topic, ends) {
  const retry = { retries: 200, maxRetryTime: 1000 }
  const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1, retry })
  await producer.connect()
  for (let number = 0; !ends(); number++) {
    await producer.send({ topic, acks: -1, messages: [{ value: `${number}` }] })
    console.log(`acked ${number}`)
    await pause(EVERY)
  }
  await producer.disconnect()
}

async function consume(kafka, groupId, topic, ends) {
  const consumer = kafka.consumer({ groupId, sessionTimeout: 10000, heartbeatInterval: 1000 })
  await consumer.connect()
  await consumer.subscribe({ topics: [topic], fromBeginning: true })
  await consumer.run({
    eachMessage: async ({ partition, message }) => console.log(`read ${partition} ${message.offset}`),
  })
  while (!ends()) await pause(100)
  await consumer.disconnect()
}

// Does `produce TOPIC` or `consume GROUP TOPIC`.
module.exports = async function work(kafka, [mode, ...where]) {
  let ended = false
  process.stdin.on('end', () => { ended = true }).resume()
  await (mode === 'produce' ? produce : consume)(kafka, ...where, () => ended)
}
