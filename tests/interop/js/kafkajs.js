// kafkajs. It knows gzip only, and reads by group only.
const { CompressionTypes, ConfigResourceTypes, Kafka, logLevel } = require('kafkajs')
const assert = require('assert')
const both = require('./both.js')
const { groups, quipu, readAll } = require('./groups.js')
const work = require('./work.js')

const brokers = process.env.BOOTSTRAP.split(',')
const kafka = new Kafka({ brokers, logLevel: logLevel.ERROR, retry: { retries: 5 } })
const admin = kafka.admin()
let names = 0
const topic = (name) => `${name}-${process.pid}-${Date.now()}-${names++}`

async function check(feature, run) {
  try {
    const skipped = await run()
    console.log(typeof skipped === 'string' ? `${feature}\tskip\t${skipped}` : `${feature}\tok\t`)
  } catch (error) {
    console.error(error)
    console.log(`${feature}\tfail\t${String(error).replace(/\s+/g, ' ').slice(0, 200)}`)
  }
}

async function newTopic(name, numPartitions = 1, configEntries = []) {
  const created = topic(name)
  await admin.createTopics({ topics: [{ topic: created, numPartitions, replicationFactor: 1, configEntries }] })
  return created
}

async function produce(name, messages, { acks = -1, compression = CompressionTypes.None, ...config } = {}) {
  const producer = kafka.producer(config)
  await producer.connect()
  try {
    return await producer.send({ topic: name, messages, acks, compression })
  } finally {
    await producer.disconnect()
  }
}

async function highWatermark(name) {
  return Number((await admin.fetchTopicOffsets(name))[0].high)
}

async function producesAll(name, options) {
  const created = await newTopic(name)
  const messages = [...Array(50).keys()].map((i) => ({ key: `k${i}`, value: `value ${i}` }))
  await produce(created, messages, options)
  for (let tries = 0; tries < 50 && (await highWatermark(created)) < 50; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  assert.strictEqual(await highWatermark(created), 50)
}

const byGroupOnly = async () => 'the client reads by group only'
const notBuiltIn = async () => 'not built into the client'

async function main() {
  await admin.connect()
  await check('create and list topics', async () => {
    const name = await newTopic('list', 3)
    assert((await admin.listTopics()).includes(name))
    const { topics } = await admin.fetchTopicMetadata({ topics: [name] })
    assert.strictEqual(topics[0].partitions.length, 3)
  })
  await check('auto-create', async () => {
    const name = topic('auto')
    await produce(name, [{ value: 'a' }], { allowAutoTopicCreation: true })
    assert.strictEqual(await highWatermark(name), 1)
  })
  await check('codec none', () => producesAll('none'))
  await check('codec gzip', () => producesAll('gzip', { compression: CompressionTypes.GZIP }))
  for (const codec of ['snappy', 'lz4', 'zstd']) await check(`codec ${codec}`, notBuiltIn)
  await check('headers, duplicates too', async () => {
    const name = await newTopic('headers')
    await produce(name, [{ value: 'v', headers: { a: ['1', '2'], b: '' } }])
    assert.strictEqual(await highWatermark(name), 1)
  })
  await check('acks 0', () => producesAll('acks-0', { acks: 0 }))
  await check('acks 1', () => producesAll('acks-1', { acks: 1 }))
  await check('acks all', () => producesAll('acks-all', { acks: -1 }))
  await check('idempotence', () => producesAll('idempotence', { idempotent: true }))
  await check('offset by time', async () => {
    const name = await newTopic('time')
    await produce(name, [...Array(20).keys()].map((i) => ({ value: `${i}`, timestamp: `${1000000 + i * 1000}` })))
    const found = await admin.fetchTopicOffsetsByTimestamp(name, 1005500)
    assert.strictEqual(found[0].offset, '6')
  })
  await check('seek', byGroupOnly)
  await check('large message', async () => {
    const name = await newTopic('large')
    await produce(name, [{ value: Buffer.alloc(900000, 'x') }])
    assert.strictEqual(await highWatermark(name), 1)
  })
  await check('topic settings', async () => {
    const name = await newTopic('settings', 1, [{ name: 'retention.ms', value: '60000' }])
    const retention = async () => {
      const resources = [{ type: ConfigResourceTypes.TOPIC, name, configNames: ['retention.ms'] }]
      return (await admin.describeConfigs({ resources, includeSynonyms: false })).resources[0].configEntries[0].configValue
    }
    assert.strictEqual(await retention(), '60000')
    const configEntries = [{ name: 'retention.ms', value: '70000' }]
    await admin.alterConfigs({ resources: [{ type: ConfigResourceTypes.TOPIC, name, configEntries }] })
    assert.strictEqual(await retention(), '70000')
  })
  await check('more partitions', async () => {
    const name = await newTopic('partitions')
    await admin.createPartitions({ topicPartitions: [{ topic: name, count: 4 }] })
    const { topics } = await admin.fetchTopicMetadata({ topics: [name] })
    assert.strictEqual(topics[0].partitions.length, 4)
  })
  await check('delete records', async () => {
    const name = await newTopic('delete-records')
    await produce(name, [...Array(10).keys()].map((i) => ({ value: `${i}` })))
    // The client looks up the topic's leaders in what it knows already.
    await admin.fetchTopicOffsets(name)
    await admin.deleteTopicRecords({ topic: name, partitions: [{ partition: 0, offset: '4' }] })
    assert.strictEqual((await admin.fetchTopicOffsets(name))[0].low, '4')
  })
  await check('delete topic', async () => {
    const name = await newTopic('delete')
    await admin.deleteTopics({ topics: [name] })
    assert(!(await admin.listTopics()).includes(name))
  })
  await check('1,000 partitions', async () => {
    const name = await newTopic('thousand', 1000)
    await produce(name, [...Array(1000).keys()].map((partition) => ({ value: 'v', partition })))
    const { topics } = await admin.fetchTopicMetadata({ topics: [name] })
    assert.strictEqual(topics[0].partitions.length, 1000)
    const ends = await admin.fetchTopicOffsets(name)
    assert(ends.every(({ high }) => high === '1'))
    await admin.deleteTopics({ topics: [name] })
  })
  await groups({ kafka, admin, check, newTopic, topic, produce })
  const compressions = { none: CompressionTypes.None, gzip: CompressionTypes.GZIP }
  await both({ kafka, check, newTopic, topic, produce, quipu, readAll, compressions })
  await admin.disconnect()
}

const task = process.argv.slice(2)
;(task.length > 0 ? work(kafka, task) : main()).catch((error) => {
  console.error(error)
  process.exit(1)
})
